/** Known answers of single primitives, worked out by hand. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Cache, type RecordedLayer } from "../../ffi/mod.ts";
import type {
  GroupReduce,
  LayerContext,
  Observation,
  PackedPart,
  Scores,
} from "../../methods/types.ts";
import { adaptiveBudgets } from "../../methods/parts/adaptive.ts";
import { openDevice } from "../ffi/tiny.ts";

/** Acts on a layer of one head and returns its keys and values. */
function acted(
  tensors: RecordedLayer,
  act: (layer: LayerContext) => void,
  observe: Observation = {},
): { keys: number[]; values: number[] } {
  const headDim = 2;
  const shape = { layers: 1, queryHeads: 1, kvHeads: 1, headDim };
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  sequence.record(tensors.k.length / headDim, observe);
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

/** Acts on a layer of one head whose rows do not matter. */
function withLayer(rows: number, act: (layer: LayerContext) => void): void {
  const ones = new Float32Array(2 * rows).fill(1);
  acted({ q: ones, k: ones, v: ones }, act);
}

const read = (scores: Scores): number[] => {
  using own = scores;
  return [...own.read()];
};

Deno.test("KA-0: pool counts the border of an average as zeros, and takes odd widths only", () => {
  withLayer(5, (layer) => {
    using scores = layer.fromArray(Float32Array.of(1, 2, 3, 4, 5), 1);
    const cases: ["avg" | "max", number, number[]][] = [
      ["avg", 1, [1, 2, 3, 4, 5]],
      ["avg", 3, [1, 2, 3, 4, 3]],
      ["avg", 5, [1.2, 2, 3, 2.8, 2.4]],
      ["avg", 7, [1.428571, 2.142857, 2.142857, 2.142857, 2]],
      ["avg", 31, Array(5).fill(15 / 31)],
      ["max", 3, [2, 3, 4, 5, 5]],
      ["max", 7, [4, 5, 5, 5, 5]],
      ["max", 31, [5, 5, 5, 5, 5]],
    ];
    for (const [kind, width, known] of cases) {
      assertNear(read(scores.pool(kind, width)), known);
    }
    for (const kind of ["avg", "max"] as const) {
      assertThrows(() => scores.pool(kind, 2), RangeError, "width must be odd");
    }
  });
});

Deno.test("KA-3: heads compete for rows by their scores, concentrated or not", () => {
  const heads = Float32Array.of(
    ...[0.5, 0.2, 0.1, 0.1, 0.05, 0.05],
    ...[0.2, 0.18, 0.17, 0.16, 0.15, 0.14],
  );
  const shape = { layers: 1, queryHeads: 2, kvHeads: 2, headDim: 2 };
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  sequence.record(6);
  const rows = new Float32Array(24).fill(1);
  sequence.recordLayer(0, { q: rows, k: rows, v: rows });
  using layer = sequence.layer(0);
  using scores = layer.fromArray(heads, 2);
  using concentrated = scores.concentrate(3);
  for (const [i, x] of concentrated.read().entries()) {
    assert(Math.abs(x - heads[i]! * (i < 6 ? 0.8 : 0.55)) < 1e-6);
  }
  for (const own of [scores, concentrated]) {
    const counts = own.share(6);
    assertEquals([...counts], [2, 4]);
    assertEquals(adaptiveBudgets([...counts], 3, 0.2, 6), [2, 3]);
  }
});

Deno.test("KA-4: window scores, their pooling, and column masses", () => {
  // Rows of one number, in the first of two channels; the square root of two undoes that of the width.
  const row = (x: number) => [x, 0];
  const k = Float32Array.from([0, 1, 2, 0.5, 1.5, 1].flatMap(row));
  const queries = (xs: number[]) =>
    Float32Array.from(xs.flatMap((x) => row(x * Math.SQRT2)));
  const observe = { windowQueries: 2, columnMasses: ["all" as const] };
  acted({ q: queries([1, 1, 1, 1, 1, 2]), k, v: k }, (layer) => {
    using scores = layer.observationScores({ window: 2, groupReduce: "mean" });
    assertNear([...scores.read()], [0.068744, 0.236992, 1.014598, 0.124818]);
    const most = [0.236992, 1.014598, 1.014598, 1.014598];
    assertNear(read(scores.pool("max", 3)), most);
    const mean = [0.101912, 0.440111, 0.458803, 0.379805];
    assertNear(read(scores.pool("avg", 3)), mean);
    using pooled = scores.pool("max", 3);
    using best = pooled.topK(2);
    assertEquals([...best.read()[0]!], [1, 2]);
  }, observe);
  acted({ q: queries([1, 1, 1, 1, 1, 1]), k, v: k }, (layer) => {
    using mass = layer.columnMass("all", "mean");
    const known = [1.545488, 1.482791, 2.043422, 0.307514, 0.484571, 0.136214];
    assertNear([...mass.read()], known);
    using early = mass.fillLast(2, -Infinity);
    using best = early.topK(2);
    assertEquals([...best.read()[0]!], [0, 2]);
  }, observe);
});

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

/** A cache of one KV head with one page of rows whose element of row `r`, channel `d` is `x(r, d)`, packed. */
function packed(
  headDim: number,
  x: (row: number, channel: number) => number,
  keys: PackedPart,
): number[] {
  const shape = { layers: 1, queryHeads: 1, kvHeads: 1, headDim };
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  const tokens = 32;
  const k = Float32Array.from(
    { length: tokens * headDim },
    (_, i) => x(Math.floor(i / headDim), i % headDim),
  );
  sequence.record(tokens);
  sequence.recordLayer(0, { q: k, k, v: k });
  {
    using layer = sequence.layer(0);
    layer.pack({ keys });
  }
  return [...sequence.readRows(0, 0, "keys")];
}

Deno.test("KA-9: codes are rounded to the nearest, the even one of two, in groups along either axis", () => {
  const inputs = [-1, 2, -0.5, 0.5, 1.5, 0, 1, 1.2];
  const known = [-1, 2, -1, 1, 1, 0, 1, 1];
  const expected = (at: (row: number, channel: number) => number) =>
    Array.from(
      { length: 32 * 32 },
      (_, i) => known[at(Math.floor(i / 32), i % 32) % 8]!,
    );
  const token = (_: number, channel: number) => channel;
  const channel = (row: number) => row;
  assertNear(
    packed(32, (r, d) => inputs[token(r, d) % 8]!, {
      bits: 2,
      axis: "token",
      group: 32,
    }),
    expected(token),
  );
  assertNear(
    packed(32, (r) => inputs[channel(r) % 8]!, { bits: 2, axis: "channel" }),
    expected(channel),
  );
});

Deno.test("KA-10: the query heads of a group are reduced by mean, maximum or sum", () => {
  const scores = [[2, 8], [4, 0.001], [1, 1], [5, 3]];
  const headDim = 4;
  const shape = { layers: 1, queryHeads: 4, kvHeads: 2, headDim };
  // Keys are unit vectors, so that a query's elements are the logarithms of what its probabilities shall be.
  const q = new Float32Array(4 * 3 * headDim);
  const k = new Float32Array(2 * 3 * headDim);
  for (const head of [0, 1]) {
    for (const row of [0, 1, 2]) k[(head * 3 + row) * headDim + row] = 1;
  }
  scores.forEach(([a = 0, b = 0], head) =>
    [a, b, 16 - a - b].forEach((x, d) =>
      q[(head * 3 + 2) * headDim + d] = Math.log(x / 16) * Math.sqrt(headDim)
    )
  );
  using device = openDevice();
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence("kv_head");
  sequence.record(3, { windowQueries: 1 });
  sequence.recordLayer(0, { q, k, v: k });
  using layer = sequence.layer(0);
  const cases: [GroupReduce, number[]][] = [
    ["mean", [3, 4.0005, 3, 2]],
    ["max", [4, 8, 5, 3]],
    ["sum", [6, 8.001, 6, 4]],
  ];
  for (const [groupReduce, known] of cases) {
    for (const reduceFirst of [false, true]) {
      using own = layer.observationScores({
        window: 1,
        groupReduce,
        reduceFirst,
      });
      assertNear([...own.read()].map((x) => 16 * x), known);
    }
  }
});
