/** The command line as a user calls it: through the launcher, in processes of its own. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { commandsPage, helpOf } from "../../cli/commands_page.ts";
import { permissionFlags } from "../../cli/kvf.ts";
import { COMMANDS } from "../../cli/program.ts";
import { writeSafetensors } from "../../models/mod.ts";
import { deno, kvf, ROOT } from "./_kvf.ts";

const LLAMA = `${ROOT}/tests/goldens/models/llama`;

Deno.test("kvf run --json prints one object with rows, bytes and times, and writes the logits", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const ids = Array.from({ length: 60 }, (_, i) => i + 3).join();
  const { code, out, err } = await kvf(
    ...[
      "run",
      "--model",
      LLAMA,
      "--prompt-ids",
      ids,
      "--method",
      "snapkv",
      "--budget",
      "40",
    ],
    ...[
      "--observation-window",
      "8",
      "--max-new-tokens",
      "3",
      "--json",
      "--dump-logits",
      `${folder}/logits.safetensors`,
    ],
  );
  assertEquals(code, 0, err);
  const result = JSON.parse(out);
  const { budget, observationWindow, poolWidth, pool } = result.options;
  assertEquals([budget, observationWindow, poolWidth, pool], [40, 8, 7, "max"]);
  assertEquals(result.promptTokens, 60);
  assertEquals(result.cache.rows, [[40, 40], [40, 40], [40, 40]]);
  assertEquals(result.cache.promisedBytes, result.cache.residentBytes);
  assert(Deno.statSync(`${folder}/logits.safetensors`).size > 3 * 256 * 4);
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("kvf refuses unknown flags, methods and values with status 2 and says what is right", async () => {
  const cases: [string[], string][] = [
    [
      ["run", "--model", LLAMA, "--prompt-ids", "1", "--method", "snapkw"],
      "snapkv",
    ],
    [[
      "run",
      "--model",
      LLAMA,
      "--prompt-ids",
      "1",
      "--method",
      "snapkv",
      "--budgets",
      "3",
    ], "--budget"],
    [[
      "run",
      "--model",
      LLAMA,
      "--prompt-ids",
      "1",
      "--method",
      "snapkv",
      "--budget",
      "many",
    ], "budget"],
    [["run", "--model", `${ROOT}/tests`, "--prompt-ids", "1"], "config.json"],
    [["methods", "--jsn"], "--json"],
    [["evaluate"], "eval"],
  ];
  for (const [args, expected] of cases) {
    const { code, out, err } = await kvf(...args);
    assertEquals([code, out], [2, ""], `${args.join(" ")}: ${err}`);
    assertStringIncludes(err, expected);
  }
});

Deno.test("model folders may hold links to files elsewhere, as a download cache does", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const links = await deno(
    "eval",
    `Deno.mkdirSync("${folder}/snapshot");
for (const name of ["config.json", "model.safetensors"]) Deno.symlinkSync("${LLAMA}/" + name, "${folder}/snapshot/" + name);`,
  );
  assertEquals(links.code, 0, links.err);
  Deno.writeTextFileSync(
    `${folder}/read.ts`,
    `import { openModelFolder, readTensor } from "${ROOT}/models/mod.ts";
const { config } = openModelFolder("${folder}/snapshot");
const { shape } = readTensor("${folder}/snapshot/model.safetensors", "model.norm.weight");
console.log(shape[0] === config.hidden);
`,
  );
  const { out, err } = await deno(
    ...["run", "-q", "--no-prompt", `--allow-read=${folder}/snapshot`],
    `${folder}/read.ts`,
  );
  assertEquals(out, "true\n", err);
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("kvf apply runs a user's own method file on recorded tensors", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const numbers = (n: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.7));
  writeSafetensors(`${folder}/qkv.safetensors`, {
    q: { shape: [4, 50, 16], data: numbers(3200) },
    k: { shape: [2, 50, 16], data: numbers(1600) },
    v: { shape: [2, 50, 16], data: numbers(1600) },
  });
  Deno.writeTextFileSync(
    `${folder}/mine.ts`,
    `import { defineMethod, integer } from "${ROOT}/methods/mod.ts";
export default defineMethod<{ budget: number }>({
  name: "mine", title: "Mine", summary: "keeps the newest rows", kind: "evict", acts: "after prefill",
  granularities: ["kv_head"], differs: "nothing known", options: { budget: integer("Rows kept", { min: 1 }) },
  create: ({ budget }) => ({ afterPrefill: (layer) => layer.retain(null, { last: budget }) }),
});
`,
  );
  const { code, out, err } = await kvf(
    ...[
      "apply",
      "--method",
      `${folder}/mine.ts`,
      "--options",
      '{"budget":3}',
      "--input",
      `${folder}/qkv.safetensors`,
      "--json",
    ],
  );
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(out).rows, [[47, 48, 49], [47, 48, 49]]);
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("kvf completions knows every verb, flag and method", async () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, out, err } = await kvf("completions", shell, "--as", "k");
    assertEquals(code, 0, err);
    for (const word of ["needle", "--prompt-file", "snapkv", "--pool-width"]) {
      assertStringIncludes(out, word, shell);
    }
  }
  const { code, err } = await kvf("completions", "tcsh");
  assertEquals(code, 2);
  assertStringIncludes(err, "bash, zsh or fish");
});

Deno.test("every verb of kvf has an example in its help", async () => {
  for (const { path } of COMMANDS) {
    const [, example] = helpOf(path).split("Example:");
    assertStringIncludes(example ?? "", `kvf ${path.join(" ")}`);
  }
  for (const args of [["--help"], ["run", "--help"]]) {
    const { code, out, err } = await kvf(...args);
    assertEquals(code, 0, err);
    assertStringIncludes(out, "Usage: kvf");
  }
});

Deno.test("docs/commands.md is what the code says; run deno task docs:methods", () => {
  assertEquals(
    Deno.readTextFileSync(`${ROOT}/docs/commands.md`),
    commandsPage(),
  );
});

Deno.test("kvf grants its own process the named folders and one library, nothing else", () => {
  const flags = permissionFlags({
    read: ["model"],
    write: ["out"],
    native: true,
  }, "/home/u");
  assertEquals(
    flags.filter((flag) => /allow-(net|env|run|sys|all|import)/.test(flag)),
    [],
  );
  assertStringIncludes(flags.join(" "), "/home/u/model,/home/u/out");
  assertStringIncludes(flags.join(" "), "--allow-write=/home/u/out");
  assertEquals(
    flags.filter((flag) => flag.startsWith("--allow-ffi")).length,
    1,
  );
});

Deno.test("a script under a task's permissions cannot read, write or connect elsewhere", async () => {
  const attempts = [
    'Deno.readTextFileSync("/etc/hostname")',
    'Deno.writeTextFileSync("models/x", "x")',
    'await fetch("http://127.0.0.1:8099/")',
    'new Deno.Command("cc").outputSync()',
    'Deno.env.get("HOME")',
    'Deno.dlopen("/lib/x86_64-linux-gnu/libc.so.6", {})',
  ];
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  for (const attempt of attempts) {
    Deno.writeTextFileSync(`${folder}/hostile.ts`, attempt);
    const { code, err } = await deno(
      "run",
      "-q",
      "--no-prompt",
      "--config",
      "deno.json",
      "-P=needle",
      `${folder}/hostile.ts`,
    );
    assertEquals(code, 1, attempt);
    assertStringIncludes(err, "NotCapable");
  }
  Deno.removeSync(folder, { recursive: true });
});
