/** `--json` of every verb: one documented object on standard output, and nothing else there. */
import { assert, assertEquals } from "@std/assert";
import { COMMANDS } from "../../cli/program.ts";
import { writeSafetensors } from "../../models/mod.ts";
import { sampleFolder, writeRecords } from "../eval/sample_records.ts";
import { kvf, ROOT } from "./_kvf.ts";

const TINY = `${ROOT}/tests/goldens/models/llama`;
const BUNDLED = `${ROOT}/models/needle-6m`;
const IDS = Array.from({ length: 60 }, (_, i) => i + 3).join();
const SMALL = [
  ...["--model", BUNDLED, "--method", "fullkv", "--threads", "1"],
];

/**
 * Arguments of each verb, without the verb; `HERE` is a fresh folder. A verb that is missing here fails the test, and so
 * does one of whose fields no call shows one.
 */
const CALLS: Record<string, string[][]> = {
  "run": [["--model", TINY, "--prompt-ids", IDS, "--max-new-tokens", "2"]],
  "apply": [[
    ...["--method", "snapkv", "--options", '{"budget":40}'],
    ...["--input", "HERE/qkv.safetensors"],
  ]],
  "eval needle": [[
    ...[...SMALL, "--lengths", "128", "--depths", "2", "--out", "HERE/needle"],
  ]],
  "eval longbench": [[
    ...[...SMALL, "--data", "HERE/data", "--datasets", "trec", "--e"],
    ...["--max-new-tokens", "2", "--out", "HERE/longbench"],
  ]],
  "eval ruler": [[
    ...[...SMALL, "--tasks", "vt", "--lengths", "256", "--limit", "1"],
    ...["--out", "HERE/ruler"],
  ]],
  "sweep": [
    [...SMALL, "--lengths", "128", "--limit", "1", "--out", "HERE/sweep"],
    [...SMALL, "--lengths", "128", "--limit", "1", "--dry-run"],
    [...SMALL, "--lengths", "128", "--out", "HERE/job", "--slurm", "HERE/j.sh"],
  ],
  // Of the records that the sweep left.
  "replay": [["HERE/sweep", "--limit", "1"]],
  "report": [["HERE/records", "--html"]],
  "view": [[
    ...[...SMALL, "--needle", "128", "--max-new-tokens", "1"],
    ...["--attention", "0", "--out", "HERE/view"],
  ]],
  "methods": [[], ["snapkv"]],
  "new-method": [["mine", "--out", "HERE/mine.ts"]],
  "check-method": [["HERE/mine.ts", "--budget", "40", "--model", TINY]],
  "search-patterns": [[
    ...["--model", TINY, "--prompt-ids", IDS, "--out", "HERE/patterns.json"],
  ]],
  "models inspect": [[TINY]],
  "models heads": [[
    ...["--model", BUNDLED, "--lengths", "128", "--depths", "2"],
    ...["--out", "HERE/heads.json"],
  ]],
  "bench": [[
    ...[...SMALL, "--lengths", "64", "--new-tokens", "2", "--repeats", "1"],
  ]],
  "doctor": [[], ["--permissions", "needle"]],
  "sandbox": [["HERE/script.ts"]],
  "completions": [["bash"]],
};

async function prepare(here: string): Promise<void> {
  const numbers = (n: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.7));
  writeSafetensors(`${here}/qkv.safetensors`, {
    q: { shape: [4, 60, 16], data: numbers(3840) },
    k: { shape: [2, 60, 16], data: numbers(1920) },
    v: { shape: [2, 60, 16], data: numbers(1920) },
  });
  await writeRecords(`${here}/records`, sampleFolder());
  Deno.mkdirSync(`${here}/data`);
  Deno.writeTextFileSync(
    `${here}/data/trec_e.jsonl`,
    JSON.stringify({
      input: "Question: what?\nType:",
      context: "Question: who?\nType: Individual",
      answers: ["Individual"],
      length: 6,
      dataset: "trec",
      language: "en",
      "all_classes": ["Individual", "Date"],
      _id: "0",
    }),
  );
  Deno.writeTextFileSync(
    `${here}/script.ts`,
    `console.log("said"); console.error("aside");`,
  );
}

Deno.test("every verb of kvf prints with --json the one object that its help describes", async () => {
  assertEquals(
    Object.keys(CALLS).sort(),
    COMMANDS.map(({ path }) => path.join(" ")).sort(),
  );
  const here = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  await prepare(here);
  for (const { path, json } of COMMANDS) {
    const verb = path.join(" ");
    const seen = new Set<string>();
    for (const call of CALLS[verb]!) {
      const args = call.map((word) => word.replaceAll("HERE", here));
      const { code, out, err } = await kvf(...path, ...args, "--json");
      const line = `kvf ${verb} ${call.join(" ")}`;
      assertEquals(code, 0, `${line}: ${err}`);
      const document = JSON.parse(out);
      const keys = Object.keys(document);
      keys.forEach((key) => seen.add(key));
      for (const key of keys) {
        assert(key in json || `${key}?` in json, `${line}: ${key} is untold`);
      }
      for (const key of Object.keys(json)) {
        assert(key.endsWith("?") || key in document, `${line}: no ${key}`);
      }
      if (verb === "sandbox") {
        assertEquals(document, { status: 0, output: "said\n", cut: false });
        assertEquals(err, "aside\n");
      }
    }
    assertEquals(
      Object.keys(json).map((key) => key.replace("?", ""))
        .filter((key) => !seen.has(key)),
      [],
      verb,
    );
  }
  Deno.removeSync(here, { recursive: true });
});

Deno.test("a wrong call with --json says so on standard error alone, with status 2", async () => {
  const wrong: Record<string, string[]> = {
    "methods": ["nothing-of-this-name"],
    "completions": ["tcsh"],
    "doctor": ["--permissions", "nothing"],
    "new-method": ["Not A Name"],
  };
  for (const { path } of COMMANDS) {
    const verb = path.join(" ");
    const args = wrong[verb] ?? ["--model", `${ROOT}/docs`, "--no-such-flag"];
    const { code, out, err } = await kvf(...path, ...args, "--json");
    assertEquals([code, out], [2, ""], `${verb}: ${err}`);
    assert(/^error: .{20}/.test(err), `${verb}: ${err}`);
    assert(!err.includes("    at "), `${verb} shows a stack: ${err}`);
  }
});
