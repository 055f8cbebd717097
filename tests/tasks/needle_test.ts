import { assert, assertEquals, assertThrows } from "@std/assert";
import { join } from "@std/path";
import {
  needleDepths,
  type NeedleOptions,
  needleTask,
} from "../../tasks/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { bundledCodec, byteCodec } from "./_codecs.ts";

const examples = (options: NeedleOptions, codec = bundledCodec) => [
  ...needleTask(options).examples(codec),
];

Deno.test("depths are those of the benchmark, linear or crowded at both ends", () => {
  assertEquals(
    needleDepths(10, "linear"),
    [0, 11, 22, 33, 44, 56, 67, 78, 89, 100],
  );
  // round(100 / (1 + exp(-0.1 (x - 50))), 3) at 25, 50 and 75.
  assertEquals(needleDepths(5, "sigmoid"), [0, 7.586, 50, 92.414, 100]);
});

Deno.test("a prompt fills its length but for a last sentence and never exceeds it, at every depth", () => {
  for (
    const [codec, lengths] of [
      [bundledCodec, [512, 1024, 4096]],
      [byteCodec, [4096]],
    ] as const
  ) {
    const made = examples(
      { lengths: [...lengths], depths: 5, buffer: 7 },
      codec,
    );
    assertEquals(made.length, lengths.length * 5);
    for (const { prompt, answerPrefix, maxNewTokens, meta } of made) {
      const tokens = codec.encode(prompt + answerPrefix).length;
      const length = meta.length as number;
      assertEquals(meta.promptTokens, tokens);
      const total = tokens + maxNewTokens + 7;
      assert(total <= length, `${total} of ${length}`);
      assert(total >= 0.96 * length, `${total} of ${length}`);
    }
  }
});

Deno.test("the needle stands once, after a full stop, where its depth says", () => {
  for (const example of examples({ lengths: [2048], depths: 10 })) {
    const { prompt, answers, meta } = example;
    const needle = meta.needle as string;
    const [before, after] = prompt.split(needle) as [string, string];
    assertEquals(prompt.split(needle).length, 2);
    assert(needle.includes(answers[0]!));
    assert(/(\.|\n) ?$/.test(before), JSON.stringify(before.slice(-20)));
    const question = prompt.lastIndexOf("\nWhat is");
    const start = prompt.indexOf("\n") + 1;
    const share = 100 * (before.length - start) /
      (question - start - needle.length);
    assert(Math.abs(share - (meta.depth as number)) < 6, `${share}`);
    if (meta.depth === 0) assertEquals(before.length, start);
    if (meta.depth === 100) assert(after.startsWith("\nWhat"));
    const ids = bundledCodec.encode(prompt);
    const [first, end] = meta.needleTokens as [number, number];
    assertEquals(bundledCodec.decode(ids.slice(first, end)).trim(), needle);
  }
});

Deno.test("a needle, a template and a haystack of one's own", () => {
  using folder = temporaryFolder();
  const sentence = "The sea is calm. ";
  Deno.writeTextFileSync(join(folder.path, "b.txt"), sentence.repeat(3));
  Deno.writeTextFileSync(join(folder.path, "a.txt"), "First of all. ");
  Deno.writeTextFileSync(join(folder.path, "c.md"), "never read");
  const options = {
    lengths: [256],
    depths: [50],
    haystack: folder.path,
    stopAtNewline: false,
    needle: {
      text: "The word is $&.",
      question: "Which word?",
      answer: "$&",
      answerPrefix: "It is",
      template: "<b>{context}</b> {question}",
    },
  };
  const [example] = examples(options);
  assert(example!.prompt.startsWith("<b>First of all."));
  assert(example!.prompt.endsWith("</b> Which word?"));
  assert(example!.prompt.includes("The word is $&."));
  assert(!example!.prompt.includes("never read"));
  assertEquals(example!.answers, ["$&"]);
  assertEquals(example!.answerPrefix, "It is");
  assertEquals(example!.stopAtNewline, false);
  const { scores = [] } = needleTask(options);
  assertEquals(
    scores.map(({ metric, answers }) => [metric, answers(example!)]),
    [["needle_rouge1", ["The word is $&."]], ["needle_words", ["$&"]]],
  );
  Deno.removeSync(join(folder.path, "a.txt"));
  Deno.removeSync(join(folder.path, "b.txt"));
  assertThrows(() => needleTask(options), RangeError, "must hold .txt files");
  assertThrows(
    () => examples({ lengths: [64], maxNewTokens: 60 }),
    RangeError,
    "must fit in 4 tokens",
  );
});

Deno.test("examples are the same whatever grid they are in", () => {
  const one = examples({ lengths: [512], depths: [50], seed: 3 });
  const many = examples({ lengths: [256, 512], depths: [0, 50, 100], seed: 3 });
  assertEquals(many.filter(({ id }) => id === one[0]!.id), one);
  assertEquals(
    needleTask({ lengths: [512] }).options,
    needleTask({ lengths: [1024], depths: 3 }).options,
  );
});
