import { assert, assertEquals } from "@std/assert";
import { applyMethod } from "../../eval/apply.ts";
import { Cache, type Device } from "../../ffi/mod.ts";
import { nacl, resolveMethod, resolveOptions } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";
import { readTensor } from "../../models/safetensors.ts";
import {
  cases,
  type Golden,
  header,
  input,
  ourOptions,
  storedRows,
} from "./goldens.ts";

/** Runs our method on a case. */
function apply(golden: Golden, device: Device) {
  const { tokens: _, ...recorded } = input(golden.input);
  const { options } = golden;
  return applyMethod({
    ...recorded,
    method: resolveMethod(golden.method),
    options: ourOptions(golden),
    granularity: options.granularity,
    layer: options.layer_idx ?? 0,
    layers: options.num_hidden_layers ?? (options.layer_idx ?? 0) + 1,
    device,
    rows: true,
  });
}

/** Scores of a case: what decides between candidates. */
function scoresOf(golden: Golden, device: Device): number[][] {
  const { tokens, shape, ...tensors } = input(golden.input);
  const { options, method } = golden;
  using cache = new Cache(device, { ...shape, layers: 1, rowDtype: "f32" });
  using sequence = cache.sequence(options.granularity);
  const given = method === "nacl" ? ourOptions(golden) : { budget: 100 };
  const proxies = nacl.create(
    resolveOptions(nacl, given),
    { ...shape, layers: 1 },
  ).observe!.columnMasses![0]!;
  sequence.record(tokens, {
    windowQueries: options.window_size ?? 0,
    columnMasses: ["all", proxies],
  });
  sequence.recordLayer(0, tensors);
  using layer = sequence.layer(0);
  const groupReduce = options.gqa_score_agg;
  const window = options.window_size;
  const scores = method === "h2o"
    ? layer.columnMass("all", groupReduce)
    : method === "nacl"
    ? layer.columnMass(proxies, "mean")
    : method === "l2norm"
    ? layer.keyNorm()
    : method === "cam"
    ? layer.observationScores({ window, groupReduce, reduceFirst: true })
    : layer.observationScores({ window, groupReduce })
      .pool(
        options.pooling === "maxpool" ? "max" : "avg",
        options.kernel_size ?? 1,
      );
  const values = [...scores.read()];
  return Array.from(
    { length: scores.heads },
    (_, h) => values.slice(h * scores.rows, (h + 1) * scores.rows),
  );
}

/** Checks a head's kept positions as sets; where they differ, scores must be ties. */
function assertSameSet(
  name: string,
  actual: number[],
  expected: number[],
  scores: () => number[],
): void {
  assertEquals(actual.length, expected.length, name);
  const ours = actual.filter((row) => !expected.includes(row));
  const theirs = expected.filter((row) => !actual.includes(row));
  if (ours.length === 0) return;
  const values = scores();
  const [a, b] = [ours, theirs].map((rows) =>
    rows.map((row) => values[row] ?? NaN)
  );
  const all = [...(a ?? []), ...(b ?? [])];
  const [least, most] = [Math.min(...all), Math.max(...all)];
  assert(
    most - least <= 1e-5 * most,
    `${name}: kept ${ours}, the reference kept ${theirs}`,
  );
}

const SELECTING = [
  "snapkv",
  "streamingllm",
  "h2o",
  "pyramidkv",
  "l2norm",
  "adakv",
  "headkv",
  "nacl",
  "cam",
  "quest",
  "scissorhands",
];

for (const method of SELECTING) {
  const own = cases.filter((golden) =>
    golden.method === method && golden.indices && !golden.options.merge
  );
  Deno.test(`${method} keeps what the reference keeps, in ${own.length} cases`, () => {
    assert(own.length >= 4);
    using device = openDevice();
    for (const golden of own) {
      const { positions, keys } = apply(golden, device);
      const { headDim } = input(golden.input).shape;
      assertEquals(positions.length, golden.indices?.length, golden.case);
      let scores: number[][] | undefined;
      positions.forEach((rows, head) => {
        assertSameSet(
          `${golden.case}, head ${head}`,
          rows,
          golden.indices?.[head] ?? [],
          () => (scores ??= scoresOf(golden, device))[head] ?? [],
        );
        assert(rows.every((row, i) => i === 0 || row > (rows[i - 1] ?? 0)));
      });
      assertEquals(
        keys?.map((rows) => rows.length),
        positions.map((rows) => rows.length * headDim),
      );
    }
  });
}

const near = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).every((x, i) =>
    Math.abs(x - b[i]!) <= 1e-5 * (1 + Math.abs(x))
  );

const merged = cases.filter(({ options, stored }) => options.merge && stored);
Deno.test(`dropped rows are merged as the reference merges them, in ${merged.length} cases`, () => {
  assertEquals(merged.length, 16);
  using device = openDevice();
  for (const golden of merged) {
    const { positions, keys, values } = apply(golden, device);
    const { headDim } = input(golden.input).shape;
    const [k, v] = [storedRows(golden.case, "k"), storedRows(golden.case, "v")];
    assertEquals(k.length, positions.length);
    positions.forEach((rows, head) => {
      assertEquals(k[head]!.length, rows.length);
      // The reference has its rows in score order: each must be one of ours, and each of ours be met once.
      const met = new Set(k[head]!.map((key, i) =>
        rows.findIndex((_, r) => {
          const at = [r * headDim, (r + 1) * headDim] as const;
          return near(keys![head]!.subarray(...at), key) &&
            near(values![head]!.subarray(...at), v[head]![i]!);
        })
      ));
      assertEquals(
        [met.size, met.has(-1)],
        [rows.length, false],
        `${golden.case}, head ${head}`,
      );
    });
  }
});

Deno.test("think prunes the channels and rows that the reference prunes", () => {
  using device = openDevice();
  const own = cases.filter(({ method }) => method === "think");
  assertEquals(own.length, 4);
  const text = (row: ArrayLike<number>) => Array.from(row).join();
  for (const golden of own) {
    const { keys, values } = apply(golden, device);
    const stored = (part: string) =>
      readTensor(header, `${golden.case}.${part}`);
    const [pruned, recent, mask, v] = [
      "k_pruned",
      "k_recent",
      "channel_mask",
      "v",
    ].map(stored);
    const [heads = 0, prunedRows = 0, channels = 0] = pruned!.shape;
    const [, recentRows = 0, headDim = 0] = recent!.shape;
    assertEquals(keys!.length, heads);
    for (let head = 0; head < heads; head++) {
      const keep = Array.from({ length: headDim }, (_, d) => d)
        .filter((d) => mask!.data[head * headDim + d] !== 0);
      assertEquals(keep.length, channels);
      const rowsOf = (
        { data }: { data: Float32Array },
        rows: number,
        width: number,
      ) =>
        Array.from({ length: rows }, (_, r) => {
          const at = (head * rows + r) * width;
          return data.subarray(at, at + width);
        });
      const all = Array.from(
        { length: prunedRows + recentRows },
        (_, r) => keys![head]!.subarray(r * headDim, (r + 1) * headDim),
      );
      // The reference has its rows in score order: compared as sets, exactly, as nothing is computed on what is kept.
      const early = all.slice(0, prunedRows);
      assertEquals(
        early.map((row) => text(keep.map((d) => row[d] ?? NaN))).sort(),
        rowsOf(pruned!, prunedRows, channels).map(text).sort(),
        golden.case,
      );
      for (const row of early) {
        assert(row.every((x, d) => keep.includes(d) || x === 0));
      }
      assertEquals(
        all.slice(prunedRows).map(text).sort(),
        rowsOf(recent!, recentRows, headDim).map(text).sort(),
        golden.case,
      );
      assertEquals(
        Array.from(
          { length: prunedRows + recentRows },
          (_, r) =>
            text(values![head]!.subarray(r * headDim, (r + 1) * headDim)),
        ).sort(),
        rowsOf(v!, prunedRows + recentRows, headDim).map(text).sort(),
        golden.case,
      );
    }
  }
});

Deno.test("cam changes values as the reference does", () => {
  using device = openDevice();
  for (const golden of cases.filter(({ method }) => method === "cam")) {
    const { positions, keys, values } = apply(golden, device);
    const { headDim } = input(golden.input).shape;
    const [k, v] = [storedRows(golden.case, "k"), storedRows(golden.case, "v")];
    positions.forEach((rows, head) =>
      golden.indices![head]!.forEach((position, i) => {
        const r = rows.indexOf(position);
        const at = [r * headDim, (r + 1) * headDim] as const;
        assert(near(keys![head]!.subarray(...at), k[head]![i]!), golden.case);
        assert(near(values![head]!.subarray(...at), v[head]![i]!), golden.case);
      })
    );
  }
});

Deno.test("applyMethod returns the rows at the kept positions", () => {
  using device = openDevice();
  const { tokens, ...recorded } = input("a");
  const { positions, keys, values, options } = applyMethod({
    ...recorded,
    method: resolveMethod("streamingllm"),
    options: { budget: 9 },
    granularity: "query_head",
    layer: 2,
    layers: 5,
    device,
    rows: true,
  });
  assertEquals([options.budget, options.sinks], [9, 4]);
  const { headDim, queryHeads, kvHeads } = recorded.shape;
  assertEquals(positions.length, queryHeads);
  positions.forEach((rows, head) => {
    const kvHead = Math.floor(head / (queryHeads / kvHeads));
    assertEquals(rows, [0, 1, 2, 3, ...[5, 4, 3, 2, 1].map((n) => tokens - n)]);
    rows.forEach((row, i) => {
      const at = (kvHead * tokens + row) * headDim;
      const own = [i * headDim, (i + 1) * headDim] as const;
      assertEquals(
        keys?.[head]?.slice(...own),
        recorded.k.slice(at, at + headDim),
      );
      assertEquals(
        values?.[head]?.slice(...own),
        recorded.v.slice(at, at + headDim),
      );
    });
  });
});

Deno.test("applyMethod takes a method's shorter prompt as it is", () => {
  using device = openDevice();
  const { tokens, ...recorded } = input("d");
  for (
    const [method, options] of [
      ["fullkv", {}],
      ["snapkv", { budget: tokens }],
      ["streamingllm", { budget: tokens + 1 }],
    ] as const
  ) {
    const { positions } = applyMethod({
      ...recorded,
      method: resolveMethod(method),
      options,
      granularity: "kv_head",
      device,
    });
    assertEquals(positions, [Array.from({ length: tokens }, (_, i) => i)]);
  }
});

Deno.test("minicache shares directions as the reference does", () => {
  using device = openDevice();
  const own = cases.filter(({ method }) => method === "minicache");
  assertEquals(own.length, 2);
  const rows = [0, 1].map((layer) =>
    storedRows("minicache", layer === 0 ? "previous" : "current")
  );
  for (const golden of own) {
    const [heads, tokens, headDim] = [2, 64, 16];
    const shape = { layers: 2, queryHeads: heads, kvHeads: heads, headDim };
    using cache = new Cache(device, { ...shape, rowDtype: "f32" });
    using sequence = cache.sequence("kv_head");
    const minicache = resolveMethod("minicache");
    const options = resolveOptions(minicache, ourOptions(golden));
    const policy = minicache.create(options, shape);
    sequence.record(tokens);
    for (const layer of [0, 1]) {
      const flat = Float32Array.from(
        rows[layer]!.flat().flatMap((row) => [...row]),
      );
      sequence.recordLayer(layer, { q: flat, k: flat, v: flat });
      sequence.act(policy, layer);
    }
    const direction = storedRows(golden.case, "direction");
    for (const layer of [0, 1]) {
      const side = layer === 0 ? "mag_previous" : "mag_current";
      const length = storedRows(golden.case, side);
      for (const what of ["keys", "values"] as const) {
        for (let head = 0; head < heads; head++) {
          const held = sequence.readRows(layer, head, what);
          for (let row = 0; row < tokens; row++) {
            const actual = held.subarray(row * headDim, (row + 1) * headDim);
            const exact = rows[layer]![head]![row]!;
            if (golden.indices![head]!.includes(row)) {
              assertEquals(actual, exact.slice());
              continue;
            }
            const expected = direction[head]![row]!
              .map((x) => x * length[head]![row]![0]!);
            assert(near(actual, expected), `${golden.case} ${head} ${row}`);
          }
        }
      }
    }
  }
});
