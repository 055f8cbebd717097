import { assertEquals, assertThrows } from "@std/assert";
import { fullkv, resolveOptions, streamingllm } from "../../methods/mod.ts";
import { fakeLayer } from "./fake_layer.ts";

const SHAPE = { layers: 4, queryHeads: 4, kvHeads: 2, headDim: 8 };

function policy(options: Record<string, unknown>) {
  return streamingllm.create(resolveOptions(streamingllm, options), SHAPE);
}

Deno.test("streamingllm keeps four sinks and the most recent tokens", () => {
  const { layer, calls } = fakeLayer(100);
  policy({ budget: 40 }).afterPrefill?.(layer);
  assertEquals(calls, [["retain", undefined, { first: 4, last: 36 }]]);
});

Deno.test("streamingllm takes the number of sinks as an option", () => {
  const { layer, calls } = fakeLayer(100);
  policy({ budget: 40, sinks: 0 }).afterPrefill?.(layer);
  assertEquals(calls, [["retain", undefined, { last: 40 }]]);
});

Deno.test("streamingllm does nothing when the prompt fits into the budget", () => {
  for (const length of [1, 39, 40]) {
    const { layer, calls } = fakeLayer(length);
    policy({ budget: 40 }).afterPrefill?.(layer);
    assertEquals(calls, []);
  }
});

Deno.test("streamingllm refuses a budget that the sinks fill", () => {
  assertThrows(
    () => policy({ budget: 4 }),
    RangeError,
    "the 4 tokens that are always kept: budget is 4",
  );
});

Deno.test("fullkv never acts", () => {
  assertEquals(fullkv.create({ quant: "none" }, SHAPE), {});
});
