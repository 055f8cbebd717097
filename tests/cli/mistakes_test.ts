// deno-lint-ignore-file no-console -- what is told is looked at
/** Mistakes that people make at the command line: each is told in one line that says what must hold, with status 2. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { report } from "../../cli/main.ts";
import { deno, kvf, ROOT } from "./_kvf.ts";

const MODEL = `${ROOT}/models/needle-6m`;
const RUN = ["run", "--model", MODEL, "--prompt", "x"];
const NEEDLE = ["eval", "needle", "--model", MODEL];

const MISTAKES: [args: string[], told: string][] = [
  [[...RUN, "--method", "snapkv"], "--budget must be given"],
  [["run", "--model", MODEL, "--prompt-file", "/nowhere"], "must be there"],
  [["run", "--model", MODEL, "--prompt-file", ROOT], "must be a file"],
  [["run", "--model", `${ROOT}/mod.ts`, "--prompt", "x"], "Not a directory"],
  [[...RUN, "--method", "./nowhere.ts"], "must be there"],
  [[...RUN, "--method", `${ROOT}/tests/../docs/`], "must be a file"],
  [[...RUN, "--dump-logits", "/nowhere/x"], '"/nowhere/x.tmp"'],
  [["run", "--model", "", "--prompt", "x"], "--model must not be empty"],
  [["report", ""], "dir must not be empty"],
  [["report", `${ROOT}/docs`], `none in "${ROOT}/docs"`],
  [[...NEEDLE, "--method", "fullkv", "--out", ""], "--out must not be empty"],
  [
    [...NEEDLE, "--method", "fullkv", "--out", `${ROOT}/build/a,b`],
    "must not hold a comma",
  ],
  [
    [...NEEDLE, "--method", "fullkv", "--lengths", "99999999", "--out"]
      .concat(`${ROOT}/build/mistakes`),
    "5120 positions: they have 99999999 tokens",
  ],
  [
    ["view", "--model", MODEL, "--method", "fullkv", "--needle", "99999999"]
      .concat("--out", `${ROOT}/build/mistakes`),
    "5120 positions",
  ],
  [["sandbox", `${ROOT}/nowhere.ts`], "must be a file"],
  [["apply", "--method", "fullkv", "--input", "/nowhere.st"], "must be there"],
];

Deno.test("kvf tells what is wrong and what must hold, at once and in one line", async () => {
  for (const [args, told] of MISTAKES) {
    const { code, out, err } = await kvf(...args);
    const line = args.join(" ");
    assertEquals([code, out], [2, ""], `${line}: ${err}`);
    assertStringIncludes(err, told, line);
    assertEquals(err.trimEnd().split("\n").length, 1, `${line}: ${err}`);
    assert(err.startsWith("error: Cannot "), `${line}: ${err}`);
  }
  try {
    Deno.removeSync(`${ROOT}/build/mistakes`, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
});

Deno.test("kvf takes a configuration that is named twice once", async () => {
  const out = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const run = await kvf(
    ...[...NEEDLE, "--method", "fullkv,snapkv,fullkv", "--budget", "64,64"],
    ...["--lengths", "128", "--depths", "2", "--out", out, "--json"],
  );
  assertEquals(run.code, 0, run.err);
  assertEquals(JSON.parse(run.out).rows.length, 2);
  Deno.removeSync(out, { recursive: true });
});

Deno.test("kvf ends without a word when nobody reads on, as in kvf run | head -c 5", async () => {
  const child = new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "-P=launcher", "cli/kvf.ts", ...RUN],
      // So many that it is not done before anybody reads.
      ...["--max-new-tokens", "4000", "--ignore-eos"],
    ],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel();
  assertEquals(await new Response(child.stderr).text(), "");
  assertEquals((await child.status).code, 141);
});

Deno.test("kvf --version prints the version", async () => {
  const { default: config } = await import("../../deno.json", {
    with: { type: "json" },
  });
  const { code, out } = await kvf("--version");
  assertEquals([code, out], [0, `${config.version}\n`]);
});

Deno.test("kvf tells in its own words that a file may not be touched", () => {
  const lines: unknown[] = [];
  const told = console.error;
  console.error = (line: unknown) => lines.push(line);
  try {
    const error = new Deno.errors.PermissionDenied(
      "Permission denied (os error 13): open '/a b'",
    );
    assertEquals(report(error), 2);
  } finally {
    console.error = told;
  }
  assertEquals(lines, [
    'error: Cannot use "/a b" as its owner and mode must let you: Permission denied',
  ]);
});

Deno.test("the build says which folder must be writable, without a stack", async () => {
  const { code, err } = await deno(
    "eval",
    "import { reportBuildErrors } from './tasks/build.ts'; await reportBuildErrors(() => Promise.reject(new Deno.errors.PermissionDenied('no')))",
  );
  assertEquals([code, err], [
    1,
    "error: Cannot build as the folder build must be yours to write: no\n",
  ]);
});

Deno.test("kvf runs where LD_LIBRARY_PATH is set, as CUDA's instructions advise", async () => {
  // A process that may do so sets it; none of its children may be refused for it.
  const { code, out, err } = await deno(
    "eval",
    `const child = new Deno.Command("deno", { args: ${
      JSON.stringify([
        ...["run", "-q", "--no-prompt", "-P=launcher", "cli/kvf.ts"],
        ...RUN,
        ...["--max-new-tokens", "1", "--json"],
      ])
    }, env: { LD_LIBRARY_PATH: "/usr/local/cuda/lib64" } }); Deno.exit((await child.spawn().status).code);`,
  );
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(out).tokens.length, 1);
});
