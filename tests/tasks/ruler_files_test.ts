import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { RULER_TASKS, type RulerOptions, rulerTask } from "../../tasks/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { bundledCodec, byteCodec } from "./_codecs.ts";

function write(path: string, value: unknown): void {
  Deno.mkdirSync(join(path, ".."), { recursive: true });
  Deno.writeTextFileSync(
    path,
    typeof value === "string" ? value : JSON.stringify(value),
  );
}

Deno.test("ready records are read in both shapes and from each place, and cap the count", () => {
  using folder = temporaryFolder();
  const line = {
    index: 7,
    input: "In. What is",
    outputs: ["a", "b"],
    length: 9,
  };
  const places: [string, string][] = [
    ["vt/validation.jsonl", "v"],
    ["vt.jsonl", "flat"],
    ["4096/vt.jsonl", "by length"],
  ];
  for (const [place, mark] of places) {
    write(
      join(folder.path, place),
      [line, { ...line, answer_prefix: " it" }].map((one) =>
        JSON.stringify({ ...one, input: mark })
      ).join("\n"),
    );
    const task = rulerTask("vt", { data: folder.path, length: 4096 });
    assertEquals(task.count, 2);
    const [first, second] = [...task.examples(byteCodec)];
    assertEquals([first!.prompt, first!.answerPrefix], [mark, ""]);
    assertEquals([second!.prompt, second!.answerPrefix], [mark, " it"]);
    assertEquals(first!.answers, ["a", "b"]);
    assertEquals(first!.maxNewTokens, 30);
    assertEquals(first!.meta, { index: 0, length: 4096, recordIndex: 7 });
  }
  const one = { data: folder.path, length: 4096, count: 1, maxNewTokens: 64 };
  const [example] = [...rulerTask("vt", one).examples(byteCodec)];
  assertEquals(example!.maxNewTokens, 64);
  assertThrows(
    () => rulerTask("cwe", one),
    Deno.errors.NotFound,
    "cwe.jsonl",
  );
  assertThrows(
    () => rulerTask("vt", { ...one, hops: 2, seed: 1 }),
    TypeError,
    "seed, hops",
  );
});

Deno.test("broken ready records name file and line", () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "vt.jsonl");
  const good = '{"index":0,"input":"a","outputs":["b"],"length":1}';
  for (
    const [bad, expected] of [
      ['{"index":0}', 'field "input"'],
      ['{"index":0,"input":"a","outputs":"b","length":1}', 'field "outputs"'],
      ["nothing", "it must be JSON"],
    ] as const
  ) {
    write(path, `${good}\n${bad}\n`);
    const { message } = assertThrows(
      () => rulerTask("vt", { data: folder.path }),
      SyntaxError,
    );
    assertStringIncludes(message, `${path}:2`);
    assertStringIncludes(message, expected);
  }
});

const SQUAD = {
  version: "v2.0",
  data: [{
    title: "T",
    paragraphs: [
      {
        context: "Ann lives in Rome.",
        qas: [
          {
            question: "Where does Ann live?",
            answers: [{ text: "Rome" }, { text: "in Rome" }, { text: "Rome" }],
            is_impossible: false,
          },
          { question: "Why?", answers: [], is_impossible: true },
        ],
      },
      { context: "Bob stays at home.", qas: [] },
    ],
  }],
};
const HOTPOT = [{
  question: "Who knows Ann?",
  answer: "Cid",
  context: [["Ann", ["Ann knows Bob.", " Bob knows Cid."]], ["Cid", ["C."]]],
}];

Deno.test("qa_1 and qa_2 ask the user's questions about the user's documents", () => {
  using folder = temporaryFolder();
  const squad = join(folder.path, "squad.json");
  const hotpot = join(folder.path, "hotpot.json");
  write(squad, SQUAD);
  write(hotpot, HOTPOT);
  const of = (name: string, options: RulerOptions) =>
    rulerTask(name, { length: 512, count: 2, ...options });
  const [first, again] = [...of("qa_1", { squad }).examples(bundledCodec)];
  assertEquals(first!.answers, ["Rome", "in Rome"]);
  assertStringIncludes(first!.prompt, "Where does Ann live?");
  assertStringIncludes(first!.prompt, "Ann lives in Rome.");
  assertStringIncludes(first!.prompt, "Bob stays at home.");
  // One question alone: the second example asks it again, its documents in another order.
  assertEquals(again!.answers, first!.answers);
  const [second] = [...of("qa_2", { hotpot }).examples(bundledCodec)];
  assertEquals(second!.answers, ["Cid"]);
  assertStringIncludes(second!.prompt, "Ann\nAnn knows Bob. Bob knows Cid.");
  const impossible = structuredClone(SQUAD);
  impossible.data[0]!.paragraphs[0]!.qas.shift();
  write(squad, impossible);
  write(hotpot, { data: [] });
  assertThrows(() => of("qa_1", { squad }), SyntaxError, squad);
  assertThrows(() => of("qa_2", { hotpot }), SyntaxError, hotpot);
});

Deno.test("wording and haystack of the user are used and recorded by their fingerprints", () => {
  using folder = temporaryFolder();
  const wording = join(folder.path, "wording.json");
  write(wording, {
    tasks: {
      niah: {
        template: "LOOK {type_needle_v}:\n{context}\nWHAT {query}?",
        answer_prefix: " IT IS",
        tokens_to_generate: 16,
      },
      qa: { template: "{context} Q {query}", answer_prefix: " A" },
    },
    noise: "Hum hum.",
    needle: "{key} -> {value}.",
  });
  const texts = join(folder.path, "texts");
  write(join(texts, "b.txt"), "Second essay here.");
  write(join(texts, "a.txt"), "First essay here.");
  const own = rulerTask("niah_single_2", { length: 512 });
  const task = rulerTask("niah_single_2", {
    length: 512,
    count: 1,
    wording,
    haystack: texts,
  });
  const [example] = [...task.examples(bundledCodec)];
  assertEquals(example!.prompt.startsWith("LOOK number:\n"), true);
  assertStringIncludes(example!.prompt, "First essay here. Second essay here.");
  assertStringIncludes(example!.prompt, `-> ${example!.answers[0]}.`);
  assertEquals(example!.answerPrefix, " IT IS");
  assertEquals(example!.maxNewTokens, 16);
  assertEquals(own.options.wording, "own");
  assertEquals(own.options.haystack, undefined);
  for (const value of [task.options.wording, task.options.haystack]) {
    assertStringIncludes(String(value), "fnv1a64:");
  }
  const noise = rulerTask("niah_single_1", { length: 512, count: 1, wording });
  assertStringIncludes(
    [...noise.examples(bundledCodec)][0]!.prompt,
    "Hum hum.\nHum hum.",
  );
  write(wording, '{"tasks": {"niah": {"template": "x"}}}');
  assertThrows(
    () => rulerTask("niah_single_1", { wording }),
    SyntaxError,
    wording,
  );
  assertEquals(RULER_TASKS.length, 13);
});
