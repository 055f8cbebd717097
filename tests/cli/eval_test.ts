// deno-lint-ignore-file no-console -- the output of commands is caught
/** The benchmark commands end to end: on a model whose tokens are bytes, and on the bundled model. */
import {
  assert,
  assertEquals,
  assertGreater,
  assertStringIncludes,
} from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { main } from "../../cli/main.ts";
import { createMetric } from "../../eval/metrics/mod.ts";
import { type EvalRecord, readRecords } from "../../eval/records/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { bundledCodec, byteCodec } from "../tasks/_codecs.ts";
import { writeTinyModel } from "../tasks/_tiny_model.ts";

const BUNDLED = fromFileUrl(new URL("../../models/needle-6m", import.meta.url));
const SAMPLES = fromFileUrl(new URL("../../../shared/data", import.meta.url));
const PROMPTS = join(SAMPLES, "longbench/config/dataset2prompt.json");
const samplesMissing = (() => {
  try {
    return !Deno.statSync(PROMPTS).isFile;
  } catch {
    return true;
  }
})();
const skipped = samplesMissing ? ` (SKIPPED: no samples in ${SAMPLES})` : "";

/** Runs a command line with its output caught. */
async function kvf(
  ...args: string[]
): Promise<{ status: number; out: string; err: string }> {
  const { log, error } = console;
  const out: string[] = [];
  const err: string[] = [];
  console.log = (...parts) => void out.push(parts.join(" "));
  console.error = (...parts) => void err.push(parts.join(" "));
  try {
    const status = await main(args);
    return { status, out: out.join("\n"), err: err.join("\n") };
  } finally {
    Object.assign(console, { log, error });
  }
}

async function recordsIn(folder: string): Promise<EvalRecord[]> {
  return await Array.fromAsync(readRecords(folder));
}

interface Line {
  input: string;
  context: string;
  answers: string[];
}

function sampleLines(path: string): Line[] {
  return Deno.readTextFileSync(join(SAMPLES, path)).trimEnd().split("\n")
    .map((line) => JSON.parse(line));
}

/** A prompt as LongBench's text says: both halves of what is too long, BOS counted, as one text. */
function promptTokens(
  codec: { encode(text: string): number[]; decode(ids: number[]): string },
  text: string,
  limit: number,
): { tokens: number; full: number } {
  const ids = codec.encode(text);
  const full = ids.length + 1;
  if (full <= limit) return { tokens: full, full };
  const half = Math.floor(limit / 2);
  const cut = codec.decode(ids.slice(0, half - 1)) +
    codec.decode(ids.slice(-half));
  return { tokens: codec.encode(cut).length + 1, full };
}

Deno.test({
  name:
    `LongBench's sample files run on the byte model: prompts, stops, records, table, resuming${skipped}`,
  ignore: samplesMissing,
  fn: async () => {
    using folder = temporaryFolder();
    const model = join(folder.path, "bytes");
    writeTinyModel(model, { positions: 1200 });
    const out = join(folder.path, "out");
    const sets = {
      "multi_news": { metric: "rouge", maxNewTokens: 512 },
      "multifieldqa_zh": { metric: "qa_f1_zh", maxNewTokens: 64 },
      "passage_retrieval_zh": { metric: "retrieval_zh", maxNewTokens: 32 },
    };
    const call = () =>
      kvf(
        ...["eval", "longbench", "--model", model, "--out", out],
        ...["--data", join(SAMPLES, "longbench"), "--prompts", PROMPTS],
        ...["--datasets", Object.keys(sets).join(), "--limit", "3"],
        ...["--method", "fullkv,streamingllm", "--budget", "48", "--quiet"],
      );
    const { status, out: printed, err } = await call();
    assertEquals([status, err], [0, ""]);
    const records = await recordsIn(out);
    assertEquals(records.length, 3 * 3 * 2);
    const prompts = JSON.parse(Deno.readTextFileSync(PROMPTS));
    for (const [name, { metric, maxNewTokens }] of Object.entries(sets)) {
      sampleLines(`longbench/${name}.jsonl`).slice(0, 3).forEach((line, i) => {
        const text = (prompts[name] as string)
          .split("{context}").join("\0").split("{input}").join(line.input)
          .split("\0").join(line.context);
        const limit = 1200 - maxNewTokens - 8;
        const { tokens, full } = promptTokens(byteCodec, text, limit);
        const own = records.filter((one) => one.example.id === `${name}-${i}`);
        assertEquals(own.length, 2);
        for (const one of own) {
          assertEquals(one.promptTokens, tokens);
          assertEquals(one.meta.fullTokens, full);
          assertEquals(one.meta.truncated, full > limit);
          // EOS and <|eot_id|>.
          assertEquals(one.generation.stop, [2, 251]);
          assertEquals(one.generation.minNewTokens, 1);
          assertEquals(one.generation.prompt, {
            chat: "none",
            maxPromptTokens: limit,
            truncate: "middle",
            beyondPositions: false,
          });
          assertGreater(one.tokens.length, 0);
          assert(!one.tokens.includes(2) && !one.tokens.includes(251));
          assertEquals(
            one.stop,
            one.tokens.length === maxNewTokens ? "max_new_tokens" : "end_token",
          );
          assertEquals(one.metric.name, metric);
          assertEquals(one.answers, line.answers);
          assertEquals(
            one.score,
            createMetric(metric).score(one.text, line.answers),
          );
          const rows = one.method.name === "fullkv" ? tokens : 48;
          assertEquals(one.cache.rows, [rows, rows, rows]);
        }
      });
    }
    const table = Deno.readTextFileSync(join(out, "longbench.md"));
    for (const name of [...Object.keys(sets), "FullKV", "StreamingLLM 48"]) {
      assertStringIncludes(table, name);
    }
    for (
      const name of ["FullKV", "StreamingLLM 48", "passage_", "retrieval_zh"]
    ) {
      assertStringIncludes(printed, name);
    }
    const before = Deno.readTextFileSync(join(out, "records-1-of-1.jsonl"));
    const again = await call();
    assertEquals(again.status, 0);
    assertStringIncludes(again.err, "18 finished records");
    assertEquals(
      Deno.readTextFileSync(join(out, "records-1-of-1.jsonl")),
      before,
    );
    assertEquals(Deno.readTextFileSync(join(out, "longbench.md")), table);
  },
});

Deno.test({
  name: `LongBench and RULER samples run on the bundled model${skipped}`,
  ignore: samplesMissing,
  fn: async () => {
    using folder = temporaryFolder();
    const common = [
      ...["--model", BUNDLED, "--limit", "2", "--truncate", "middle"],
      ...["--max-prompt-tokens", "600", "--max-new-tokens", "6", "--quiet"],
      ...["--method", "fullkv,snapkv", "--budget", "64"],
    ];
    const news = join(folder.path, "news");
    const first = await kvf(
      ...["eval", "longbench", ...common, "--out", news],
      ...["--data", join(SAMPLES, "longbench"), "--prompts", PROMPTS],
      ...["--datasets", "multi_news"],
    );
    assertEquals([first.status, first.err], [0, ""]);
    const template = JSON.parse(Deno.readTextFileSync(PROMPTS)).multi_news;
    const lines = sampleLines("longbench/multi_news.jsonl");
    for (const record of await recordsIn(news)) {
      const { context } = lines[record.meta.index as number]!;
      const text = template.split("{context}").join(context);
      assertEquals(
        record.promptTokens,
        promptTokens(bundledCodec, text, 600).tokens,
      );
      assertEquals(record.meta.truncated, true);
    }
    const uuids = join(folder.path, "uuids");
    const second = await kvf(
      ...["eval", "ruler", ...common, "--out", uuids, "--lengths", "4096"],
      ...["--data", join(SAMPLES, "ruler"), "--tasks", "niah_multikey_3"],
    );
    assertEquals([second.status, second.err], [0, ""]);
    const records = await recordsIn(uuids);
    assertEquals(records.length, 4);
    const inputs = sampleLines("ruler/4096/niah_multikey_3.jsonl");
    for (const record of records) {
      const { input } = inputs[record.meta.index as number]!;
      assertEquals(
        record.promptTokens,
        promptTokens(bundledCodec, input, 600).tokens,
      );
      assertEquals(record.metric.name, "string_match_all");
    }
    assertStringIncludes(
      Deno.readTextFileSync(join(uuids, "ruler_4096.md")),
      "niah_multikey_3",
    );
  },
});

Deno.test("RULER on the bundled model: a table for each length, a longer run goes on where a shorter one ended", async () => {
  using folder = temporaryFolder();
  const out = join(folder.path, "out");
  const call = (limit: number) =>
    kvf(
      ...["eval", "ruler", "--model", BUNDLED, "--out", out, "--json"],
      ...["--tasks", "niah_single_1,vt", "--lengths", "256,512"],
      ...["--limit", String(limit), "--method", "fullkv,snapkv"],
      ...["--budget", "48"],
    );
  const { status, out: printed, err } = await call(2);
  assertEquals([status, err], [0, ""]);
  const summary = JSON.parse(printed);
  assertEquals(Object.keys(summary.lengths), ["256", "512"]);
  const [full, snap] = summary.lengths["512"];
  assertEquals([full.configuration, snap.configuration, full.n], [
    "FullKV",
    "SnapKV 48",
    4,
  ]);
  assertEquals(full.cells.niah_single_1.value, 100);
  assertEquals((await recordsIn(out)).length, 16);
  assertEquals((await call(3)).status, 0);
  assertEquals((await recordsIn(out)).length, 24);
  // The table of a shorter run holds its own examples alone.
  assertEquals(JSON.parse((await call(1)).out).lengths["512"][0].n, 2);
});

Deno.test("needle: the scores of KVCache-Factory are an option and need no second run", async () => {
  using folder = temporaryFolder();
  const out = join(folder.path, "out");
  const call = async (score: string) => {
    const { status, out: printed } = await kvf(
      ...["eval", "needle", "--model", BUNDLED, "--out", out, "--json"],
      ...["--lengths", "256", "--depths", "2", "--method", "fullkv"],
      ...["--needle", "The secret is 31.", "--question", "What is it?"],
      ...["--answer", "31.", "--answer-prefix", "The secret is"],
      ...["--score", score],
    );
    assertEquals(status, 0);
    return JSON.parse(printed).rows[0].score as number;
  };
  const match = await call("match");
  const records = await recordsIn(out);
  for (const kind of ["rouge1", "words"]) {
    const expected = records.map((one) => one.scores![`needle_${kind}`]!);
    assertEquals(
      await call(kind),
      expected.reduce((sum, x) => sum + x, 0) / expected.length,
    );
  }
  assertEquals(match, records.reduce((s, r) => s + r.score, 0) / 2);
  assertEquals((await recordsIn(out)).length, 2);
  const words = createMetric("needle_words");
  const rouge = createMetric("needle_rouge1");
  for (const { text, scores } of records) {
    assertEquals(scores!.needle_words, words.score(text, ["31."]));
    assertEquals(
      scores!.needle_rouge1,
      rouge.score(text, ["The secret is 31."]),
    );
  }
});

Deno.test("chat forms leave texts to be continued alone, and samsum alone stops at a newline", async () => {
  using folder = temporaryFolder();
  const model = join(folder.path, "bytes");
  writeTinyModel(model, { chat: true });
  const record = {
    input: "Q",
    context: "C",
    answers: ["a"],
    length: 3,
    language: "en",
    "all_classes": ["a"],
  };
  const sets = ["samsum", "trec", "hotpotqa"];
  for (const dataset of sets) {
    Deno.writeTextFileSync(
      join(folder.path, `${dataset}.jsonl`),
      JSON.stringify({ ...record, dataset, _id: dataset }),
    );
  }
  const prompts = join(folder.path, "prompts.json");
  Deno.writeTextFileSync(
    prompts,
    JSON.stringify(
      Object.fromEntries(sets.map((s) => [s, "{context}|{input}"])),
    ),
  );
  const run = async (out: string, ...flags: string[]) => {
    const path = join(folder.path, out);
    const { status, err } = await kvf(
      ...["eval", "longbench", "--model", model, "--data", folder.path],
      ...["--prompts", prompts, "--datasets", sets.join(), "--quiet"],
      ...["--method", "fullkv", "--out", path, "--max-new-tokens", "3"],
      ...flags,
    );
    assertEquals([status, err], [0, ""]);
    const records = await recordsIn(path);
    return Object.fromEntries(
      records.map((one) => [String(one.meta.dataset), one]),
    );
  };
  const plain = "_C|Q".length; // BOS and three characters
  const wrapped = "_U:C|Q|A:".length;
  const auto = await run("auto");
  assertEquals(
    sets.map((name) => auto[name]!.promptTokens),
    [plain, plain, wrapped],
  );
  assertEquals(
    sets.map((name) => auto[name]!.generation.stop),
    [[2, 251, 10], [2, 251], [2, 251]],
  );
  const always = await run(
    ...["always", "--chat", "always", "--stop-at-newline", "few-shot"] as const,
  );
  assertEquals(
    sets.map((name) => always[name]!.promptTokens),
    [wrapped, wrapped, wrapped],
  );
  assertEquals(
    sets.map((name) => always[name]!.generation.stop),
    [[2, 251, 10], [2, 251, 10], [2, 251]],
  );
});

Deno.test("a sweep builds LongBench prompts as eval longbench does: the records are the same", async () => {
  using folder = temporaryFolder();
  const model = join(folder.path, "bytes");
  writeTinyModel(model, { positions: 128 });
  Deno.writeTextFileSync(
    join(folder.path, "lcc.jsonl"),
    JSON.stringify({
      input: "",
      context: "x = 1\n".repeat(40),
      answers: ["y"],
      length: 3,
      dataset: "lcc",
      language: "python",
      "all_classes": null,
      _id: "0",
    }),
  );
  const first = join(folder.path, "eval"), second = join(folder.path, "sweep");
  const evaluated = await kvf(
    ...["eval", "longbench", "--model", model, "--data", folder.path],
    ...["--datasets", "lcc", "--method", "fullkv", "--out", first, "--quiet"],
    ...["--max-new-tokens", "5"],
  );
  assertEquals([evaluated.status, evaluated.err], [0, ""]);
  const plan = join(folder.path, "plan.json");
  Deno.writeTextFileSync(
    plan,
    JSON.stringify({
      models: [model],
      tasks: [{
        name: "longbench/lcc",
        options: { data: folder.path, maxNewTokens: 5 },
      }],
      configurations: ["fullkv"],
      out: second,
    }),
  );
  const swept = await kvf("sweep", plan, "--quiet");
  assertEquals([swept.status, swept.err], [0, ""]);
  const [one] = await recordsIn(first);
  const [other] = await recordsIn(second);
  assertEquals(one!.meta.truncated, true);
  assertEquals(one!.generation.minNewTokens, 1);
  assertEquals(other!.key, one!.key);
  assertEquals(other!.tokens, one!.tokens);
});

Deno.test("broken data stops a benchmark before the model is loaded, with status 2, file and line", async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "lcc.jsonl");
  Deno.writeTextFileSync(path, "{}\n");
  const { status, err } = await kvf(
    ...["eval", "longbench", "--model", join(folder.path, "no-model")],
    ...["--data", folder.path, "--datasets", "lcc", "--method", "fullkv"],
    ...["--out", join(folder.path, "out")],
  );
  assertEquals(status, 2);
  assertStringIncludes(err, `${path}:1`);
  const unknown = await kvf(
    ...["eval", "ruler", "--model", BUNDLED, "--tasks", "niah_single_9"],
    ...["--method", "fullkv", "--out", join(folder.path, "out")],
  );
  assertEquals(unknown.status, 2);
  assertStringIncludes(unknown.err, "niah_single_9");
});
