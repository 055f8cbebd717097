/** Known answers of single primitives, worked out by hand. */
import { assert, assertEquals } from "@std/assert";
import { Cache, type RecordedLayer } from "../../ffi/mod.ts";
import type { LayerContext } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";

/** Acts on a layer of one head and returns its keys and values. */
function acted(
  tensors: RecordedLayer,
  act: (layer: LayerContext) => void,
): { keys: number[]; values: number[] } {
  const headDim = 2;
  const shape = { layers: 1, queryHeads: 1, kvHeads: 1, headDim };
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  sequence.record(tensors.k.length / headDim);
  sequence.recordLayer(0, tensors);
  {
    using layer = sequence.layer(0);
    act(layer);
  }
  const read = (what: "keys" | "values") => [...sequence.readRows(0, 0, what)];
  return { keys: read("keys"), values: read("values") };
}

function assertNear(actual: number[], expected: number[]): void {
  assert(
    actual.length === expected.length &&
      actual.every((x, i) => Math.abs(x - expected[i]!) < 1e-5),
    `${actual} is not ${expected}`,
  );
}

Deno.test("KA-5: spreadValues hands values on in order", () => {
  const ones = new Float32Array(16).fill(1);
  const { values } = acted({ q: ones, k: ones, v: ones }, (layer) => {
    using shares = layer.fromArray(new Float32Array(8).fill(1), 1);
    layer.spreadValues(shares, { first: 1, span: 2 });
  });
  const known = [1, 1, 1.5, 2.25, 2.875, 3.5625, 4.21875, 2.78125];
  assertNear(values, known.flatMap((x) => [x, x]));
});

Deno.test("KA-6: exact page choices lose the end of the best page", () => {
  const shape = { layers: 1, queryHeads: 1, kvHeads: 1, headDim: 2 };
  const k = Float32Array.from([5, 1, 2, 3, 9].flatMap((x) => [x, 0]));
  const q = Float32Array.from(k, () => 1);
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  const read = (exact: boolean) => {
    using sequence = cache.sequence("kv_head");
    sequence.record(5, { windowQueries: 1 });
    sequence.recordLayer(0, { q, k, v: k });
    const pages = { pageRows: 2, budget: 3, exact };
    sequence.act({ decode: (step) => step.attendByPages(pages) }, 0);
    return [...sequence.attendedRows(0, 0)];
  };
  assertEquals(read(true), [0, 1, 2]);
  assertEquals(read(false), [0, 1, 4]);
});

Deno.test("KA-8: a dropped row is merged into the row with the most similar key", () => {
  const k = Float32Array.of(1, 0, 0.6, 0.8, 0, 1, 1, 1);
  const v = Float32Array.of(1, 1, 10, 10, 2, 2, 4, 4);
  const cases = [
    ["midpoint", [0.9, 0.95], 5.5],
    ["similarity", [0.800504, 0.900252], 6.992443],
  ] as const;
  for (const [merge, key, value] of cases) {
    const { keys, values } = acted({ q: k, k, v }, (layer) => {
      using kept = layer.select([[0, 2]]);
      layer.retain(kept, { last: 1, merge });
    });
    assertNear(keys, [1, 0, 0, 1, ...key]);
    assertNear(values, [1, 1, 2, 2, value, value]);
  }
});

Deno.test("KA-7: shared directions lie between, and lengths stay", () => {
  const headDim = 2;
  const shape = { layers: 2, queryHeads: 1, kvHeads: 1, headDim };
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  sequence.record(1);
  const [previous, current] = [Float32Array.of(0, 2), Float32Array.of(3, 0)];
  sequence.recordLayer(0, { q: previous, k: previous, v: previous });
  sequence.recordLayer(1, { q: current, k: current, v: current });
  {
    using layer = sequence.layer(1);
    layer.shareDirections({ interpolation: 0.6, exact: 0 });
  }
  const direction = [0.809017, 0.587785];
  for (const what of ["keys", "values"] as const) {
    assertNear([...sequence.readRows(0, 0, what)], direction.map((x) => 2 * x));
    assertNear([...sequence.readRows(1, 0, what)], direction.map((x) => 3 * x));
  }
});
