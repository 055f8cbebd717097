import { assertEquals, assertThrows } from "@std/assert";
import { resolveOptions, snapkv } from "../../methods/mod.ts";
import { fakeLayer } from "./fake_layer.ts";

const SHAPE = { layers: 4, queryHeads: 4, kvHeads: 2, headDim: 8 };

function policy(options: Record<string, unknown>) {
  return snapkv.create(resolveOptions(snapkv, options), SHAPE);
}

Deno.test("snapkv keeps budget tokens, window included", () => {
  const { layer, calls, live } = fakeLayer(100);
  policy({ budget: 40, observationWindow: 8, poolWidth: 5, pool: "avg" })
    .afterPrefill?.(layer);
  assertEquals(calls, [
    ["observationScores", { window: 8, groupReduce: "mean", over: "sum" }],
    ["pool", "avg", 5],
    ["topK", 32],
    ["retain", [32, 32], { last: 8 }],
  ]);
  assertEquals(live(), 0);
});

Deno.test("snapkv does nothing when the prompt fits into the budget", () => {
  for (const length of [1, 39, 40]) {
    const { layer, calls } = fakeLayer(length);
    policy({ budget: 40, observationWindow: 8 }).afterPrefill?.(layer);
    assertEquals(calls, []);
  }
});

Deno.test("snapkv acts from one token above the budget", () => {
  const { layer, calls } = fakeLayer(41);
  policy({ budget: 40 }).afterPrefill?.(layer);
  assertEquals(calls.at(-1), ["retain", [8, 8], { last: 32 }]);
});

Deno.test("snapkv asks prefill for the queries of its window", () => {
  assertEquals(policy({ budget: 64, observationWindow: 16 }).observe, {
    windowQueries: 16,
  });
});

Deno.test("snapkv promises at most budget rows per stored head", () => {
  const rows = (length: number) =>
    policy({ budget: 64 }).maxRows?.({
      ...SHAPE,
      layer: 0,
      length,
      storedHeads: 2,
    });
  assertEquals([rows(63), rows(64), rows(1000)], [126, 128, 128]);
});

Deno.test("snapkv refuses a budget that the window fills", () => {
  for (const budget of [8, 32]) {
    assertThrows(
      () => policy({ budget, observationWindow: 32 }),
      RangeError,
      `the 32 tokens that are always kept: budget is ${budget}`,
    );
  }
});

Deno.test("snapkv refuses an even pooling width", () => {
  assertThrows(
    () => policy({ budget: 64, poolWidth: 4 }),
    RangeError,
    "must be odd",
  );
});
