import { assert, assertEquals, assertThrows } from "@std/assert";
import { createMetric } from "../../eval/metrics/mod.ts";
import { RULER_TASKS, rulerTask } from "../../tasks/mod.ts";
import { bundledCodec, byteCodec } from "./_codecs.ts";
import { oracleOf } from "./_oracles.ts";

for (const name of RULER_TASKS) {
  Deno.test(`${name}: within 2 % of the length and never above it, solvable from the prompt alone`, () => {
    for (
      const [codec, lengths, count] of [
        [bundledCodec, [1024, 2048, 4096], 8],
        [bundledCodec, [16384], 2],
        [byteCodec, [8192], 3],
      ] as const
    ) {
      for (const length of lengths) {
        const task = rulerTask(name, { length, count, seed: 11 });
        const { score } = createMetric(task.metric);
        let seen = 0;
        for (const example of task.examples(codec)) {
          seen++;
          const { prompt, answerPrefix, answers, maxNewTokens, meta } = example;
          const tokens = codec.encode(prompt + answerPrefix).length;
          assertEquals(meta.promptTokens, tokens);
          const total = tokens + maxNewTokens;
          assert(total <= length, `${total} tokens of ${length}`);
          assert(total >= 0.98 * length, `${total} tokens of ${length}`);
          assertEquals(new Set(answers).size, answers.length);
          const found = oracleOf(name)(prompt);
          assertEquals(found.toSorted(), answers.toSorted());
          assertEquals(score(` ${found.join(", ")}`, answers), 1);
          assertEquals(score("I do not know", answers), 0);
        }
        assertEquals(seen, task.count);
      }
    }
  });

  Deno.test(`${name}: the seed decides, and an example does not depend on those before it`, () => {
    const of = (seed: number, count: number) => [
      ...rulerTask(name, { length: 1024, count, seed }).examples(bundledCodec),
    ];
    const five = of(3, 5);
    assertEquals(of(3, 5), five);
    assertEquals(of(3, 2), five.slice(0, 2));
    assertEquals(
      new Set([...five, ...of(4, 5)].map(({ prompt }) => prompt)).size,
      10,
    );
    const task = rulerTask(name, { length: 1024, seed: 3 });
    assertEquals(task.example(bundledCodec, 4).prompt, five[4]!.prompt);
    assertEquals(new Set(five.map(({ id }) => id)).size, 5);
  });
}

Deno.test("a needle hides at many depths, and the asked one is not always the same", () => {
  const task = rulerTask("niah_multikey_1", { length: 1024, count: 30 });
  const depths = [...task.examples(bundledCodec)].map(({ meta }) =>
    (meta.depths as number[])[0]!
  );
  assert(Math.min(...depths) < 20 && Math.max(...depths) > 80);
});

Deno.test("RULER refuses lengths that the question alone exceeds, unknown names and options", () => {
  const task = rulerTask("niah_multivalue", { length: 256, maxNewTokens: 250 });
  assertThrows(
    () => [...task.examples(bundledCodec)],
    RangeError,
    "must fit in 6 tokens",
  );
  assertThrows(() => rulerTask("niah", {}), TypeError, '"niah"');
  assertThrows(() => rulerTask("vt", { hop: 3 } as never), Error, "hop");
});

Deno.test("the number of examples is no part of the recorded options", () => {
  const options = (count: number) => rulerTask("vt", { count }).options;
  assertEquals(options(3), options(30));
});
