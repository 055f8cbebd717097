import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { strToU8, zipSync } from "fflate";
import { createMetric } from "../../eval/metrics/mod.ts";
import {
  createTask,
  type Example,
  LONGBENCH_DATA_SETS,
  type LongBenchOptions,
  longbenchTask,
  taskPaths,
} from "../../tasks/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { byteCodec } from "./_codecs.ts";

/** A record with everything in it. */
function record(fields: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    input: "who?",
    context: "Somebody.",
    answers: ["Ann", "Bob"],
    length: 3,
    dataset: "hotpotqa",
    language: "en",
    all_classes: null,
    _id: "ab",
    ...fields,
  };
}

/** Writes files into a folder; values that are not texts become JSON lines. */
function write(
  folder: string,
  files: Record<string, string | unknown[]>,
): void {
  for (const [name, content] of Object.entries(files)) {
    const text = typeof content === "string"
      ? content
      : content.map((line) => JSON.stringify(line) + "\n").join("");
    Deno.writeTextFileSync(join(folder, name), text);
  }
}

function examples(
  dataset: string,
  options: LongBenchOptions,
): Example[] {
  return [...longbenchTask(dataset, options).examples(byteCodec)];
}

Deno.test("the table holds the 21 data sets with their metrics, 13 of them in LongBench-E", () => {
  const sets = [...LONGBENCH_DATA_SETS];
  assertEquals(sets.length, 21);
  const names = (test: (set: (typeof sets)[number][1]) => boolean) =>
    sets.filter(([, set]) => test(set)).map(([name]) => name);
  assertEquals(names((set) => set.extended).length, 13);
  assertEquals(names((set) => set.language !== "zh").length, 16);
  assertEquals(names((set) => set.firstLine), [
    "trec",
    "triviaqa",
    "samsum",
    "lsht",
  ]);
  assertEquals(names((set) => set.completion), [
    "trec",
    "triviaqa",
    "samsum",
    "lsht",
    "lcc",
    "repobench-p",
  ]);
  for (const [name, { metric }] of sets) {
    const options = metric === "classification" ? { labels: ["a"] } : {};
    assertEquals(createMetric(metric, options).name, metric, name);
  }
});

Deno.test("a record becomes an example: slots are filled in one pass and nothing is trimmed", () => {
  using folder = temporaryFolder();
  write(folder.path, {
    "hotpotqa.jsonl": [
      record({ context: "$& {input} {context}", input: "a $1 b" }),
    ],
    "prompts.json": JSON.stringify({
      hotpotqa: " Read {context}.\nQ: {input} {other}\n ",
    }),
  });
  const options = {
    data: folder.path,
    prompts: join(folder.path, "prompts.json"),
  };
  const task = longbenchTask("hotpotqa", options);
  assertEquals(task.name, "longbench/hotpotqa");
  assertEquals([...task.examples(byteCodec)], [{
    id: "hotpotqa-0",
    prompt: " Read $& {input} {context}.\nQ: a $1 b {other}\n ",
    answerPrefix: "",
    answers: ["Ann", "Bob"],
    maxNewTokens: 32,
    stopAtNewline: false,
    meta: {
      index: 0,
      dataset: "hotpotqa",
      recordId: "ab",
      length: 3,
      language: "en",
    },
  }]);
  assertEquals(task.metricOptions, { firstLine: false });
  assert(task.options.wording !== "own");
  assertEquals(
    longbenchTask("hotpotqa", { data: folder.path }).options.wording,
    "own",
  );
  assertEquals(createTask("longbench/hotpotqa", options).count, 1);
  assertEquals(taskPaths({ ...options, limit: 3 }), [
    folder.path,
    options.prompts,
  ]);
});

Deno.test("our own wording has every slot that a data set fills", () => {
  using folder = temporaryFolder();
  for (const name of LONGBENCH_DATA_SETS.keys()) {
    write(folder.path, {
      [`${name}.jsonl`]: [record({ context: "CONTEXT", input: "INPUT" })],
    });
    const [{ prompt }] = examples(name, { data: folder.path }) as [Example];
    assertStringIncludes(prompt, "CONTEXT");
    const noInput = [
      "gov_report",
      "multi_news",
      "vcsum",
      "passage_count",
      "lcc",
    ];
    assertEquals(prompt.includes("INPUT"), !noInput.includes(name), name);
    assert(!/\{(context|input)\}/.test(prompt), name);
  }
});

Deno.test("stop rules, first lines, answer lengths and labels go by the data set and its options", () => {
  using folder = temporaryFolder();
  const labels = (all: string[]) => record({ all_classes: all });
  write(folder.path, {
    "samsum.jsonl": [record()],
    "trec.jsonl": [labels(["x"]), labels(["Ann", "Annie"])],
    "lcc.jsonl": [record()],
    "lengths.json": JSON.stringify({ samsum: 7, lcc: 9, trec: 3 }),
  });
  const data = folder.path;
  const stops = (name: string, stopAtNewline?: "few-shot" | "never") =>
    examples(name, { data, ...(stopAtNewline ? { stopAtNewline } : {}) })[0]!
      .stopAtNewline;
  assertEquals([stops("samsum"), stops("trec"), stops("lcc")], [
    true,
    false,
    false,
  ]);
  assertEquals([stops("trec", "few-shot"), stops("lcc", "few-shot")], [
    true,
    false,
  ]);
  assertEquals(stops("samsum", "never"), false);
  const lengths = join(data, "lengths.json");
  assertEquals(examples("lcc", { data, lengths })[0]!.maxNewTokens, 9);
  assertEquals(
    examples("lcc", { data, lengths, maxNewTokens: 5 })[0]!.maxNewTokens,
    5,
  );
  const trec = longbenchTask("trec", { data });
  assertEquals(trec.metricOptions, {
    firstLine: true,
    labels: ["Ann", "Annie"],
  });
  const score = createMetric(trec.metric, trec.metricOptions!).score;
  assertEquals(score("\n\nAnn\nAnnie", ["Ann"]), 1);
  assertEquals(score("Annie or Ann", ["Ann"]), 0.5);
  const all = longbenchTask("trec", { data, firstLine: "never" });
  assertEquals(
    createMetric(all.metric, all.metricOptions!).score("\n\nAnn\nAnnie", [
      "Ann",
    ]),
    0.5,
  );
  const code = longbenchTask("lcc", { data, similarity: "difflib" });
  assertEquals(code.metricOptions, { firstLine: false, similarity: "difflib" });
  assertEquals(examples("lcc", { data })[0]!.completion, true);
});

Deno.test("the official archive is read as the folder is; LongBench-E has files of its own", () => {
  using folder = temporaryFolder();
  const text = (name: string) => JSON.stringify(record({ _id: name }));
  const zip = join(folder.path, "data.zip");
  Deno.writeFileSync(
    zip,
    zipSync({
      "data/hotpotqa.jsonl": strToU8(text("plain")),
      "data/hotpotqa_e.jsonl": strToU8(text("extended")),
      "__MACOSX/data/hotpotqa.jsonl": strToU8("\0"),
    }),
  );
  const ids = (e: boolean) =>
    examples("hotpotqa", { data: zip, e }).map(({ meta }) => meta.recordId);
  assertEquals([ids(false), ids(true)], [["plain"], ["extended"]]);
  const task = longbenchTask("hotpotqa", { data: zip, e: true });
  assertEquals(task.name, "longbench/hotpotqa_e");
  assertThrows(
    () => longbenchTask("musique", { data: zip, e: true }),
    TypeError,
    "LongBench-E",
  );
  assertThrows(
    () => longbenchTask("lcc", { data: zip }),
    Deno.errors.NotFound,
    "lcc.jsonl",
  );
  Deno.writeTextFileSync(zip, "no archive");
  assertThrows(() => longbenchTask("lcc", { data: zip }), SyntaxError, zip);
});

Deno.test("a limit takes the first records, or a sample that does not depend on other data sets", () => {
  using folder = temporaryFolder();
  const lines = Array.from({ length: 50 }, (_, i) => record({ _id: `${i}` }));
  write(folder.path, { "hotpotqa.jsonl": lines });
  const ids = (options: Omit<LongBenchOptions, "data">) =>
    examples("hotpotqa", { data: folder.path, ...options })
      .map(({ meta }) => Number(meta.recordId));
  assertEquals(ids({ limit: 3 }), [0, 1, 2]);
  const sample = ids({ limit: 5, sample: "random", seed: 1 });
  assertEquals(ids({ limit: 5, sample: "random", seed: 1 }), sample);
  assertEquals(sample, sample.toSorted((a, b) => a - b));
  assertEquals(new Set(sample).size, 5);
  assert(
    String(ids({ limit: 5, sample: "random", seed: 2 })) !== String(sample),
  );
  assertEquals(ids({ limit: 90 }).length, 50);
});

/** What `run` throws for a file of the given bytes. */
function failure(bytes: Uint8Array | string): Error {
  using folder = temporaryFolder();
  const path = join(folder.path, "lcc.jsonl");
  Deno.writeFileSync(
    path,
    typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes,
  );
  const error = assertThrows(
    () => longbenchTask("lcc", { data: folder.path }),
    SyntaxError,
    path,
  );
  return new Error(error.message.replaceAll(path, "FILE"));
}

Deno.test("broken data names file and line", () => {
  const good = JSON.stringify(record());
  const { context: _, ...lacking } = record();
  const cases: [string | Uint8Array, string][] = [
    ["", "it must hold at least one record: FILE"],
    ["\n \n", "it must hold at least one record: FILE"],
    [`${good}\n{"input":`, "FILE:2"],
    [`${good}\n\n[]\n`, "the record must be valid"],
    [`${good}\n${JSON.stringify(lacking)}`, 'field "context" must be valid'],
    [JSON.stringify(record({ length: "3" })), 'field "length" must be valid'],
    [JSON.stringify(record({ answers: [] })), 'field "answers" must be valid'],
    [JSON.stringify(record({ answers: ["a", 1] })), 'field "answers.1"'],
    [
      new Uint8Array([...new TextEncoder().encode(`${good}\n`), 0x22, 0xff]),
      "it must be UTF-8: FILE:2",
    ],
  ];
  for (const [content, expected] of cases) {
    assertStringIncludes(failure(content).message, expected);
  }
  assertStringIncludes(failure(`${good}\n\n[]\n`).message, "FILE:3");
  assertStringIncludes(
    failure(`${good}\n\n${JSON.stringify(lacking)}`).message,
    "FILE:3",
  );
});

Deno.test("whatever a file holds, it is read or refused by name and line", () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "lcc.jsonl");
  const good = new TextEncoder().encode(`${JSON.stringify(record())}\n`);
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 40 }),
      fc.nat(good.length),
      (bytes, at) => {
        const content = new Uint8Array(good.length + bytes.length);
        content.set(good.subarray(0, at));
        content.set(bytes, at);
        content.set(good.subarray(at), at + bytes.length);
        Deno.writeFileSync(path, content);
        try {
          assert(examples("lcc", { data: folder.path }).length > 0);
        } catch (error) {
          assert(error instanceof SyntaxError, String(error));
          assertStringIncludes(error.message, path);
        }
      },
    ),
    { seed: 3, numRuns: 300 },
  );
});

Deno.test("a wording file that lacks the data set or its slot is refused by name", () => {
  using folder = temporaryFolder();
  write(folder.path, {
    "lcc.jsonl": [record()],
    "none.json": "{}",
    "slot.json": '{"lcc": "no slot"}',
    "broken.json": "{",
  });
  for (const name of ["none.json", "slot.json", "broken.json"]) {
    const prompts = join(folder.path, name);
    assertThrows(
      () => longbenchTask("lcc", { data: folder.path, prompts }),
      SyntaxError,
      prompts,
    );
  }
});
