// deno-lint-ignore-file camelcase -- the golden file has the reference's names
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { applyMethod } from "../../eval/apply.ts";
import { Cache, type Device } from "../../ffi/mod.ts";
import { type Granularity, resolveMethod } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";
import { readSafetensorsHeader, readTensor } from "../../models/safetensors.ts";

interface Golden {
  case: string;
  input: string;
  method: string;
  options: {
    max_capacity_prompt: number;
    window_size: number;
    kernel_size?: number;
    pooling?: string;
    granularity: Granularity;
    gqa_score_agg: "mean" | "max" | "sum";
    merge?: string | null;
    layer_idx?: number;
    num_hidden_layers?: number;
    skip_layers?: number[];
    floor_ratio?: number;
    normalize?: boolean | null;
  };
  indices?: number[][];
}

const folder = new URL("../goldens/methods/", import.meta.url);
const cases: Golden[] = JSON.parse(
  Deno.readTextFileSync(new URL("methods.json", folder)),
);

const header = readSafetensorsHeader(
  fromFileUrl(new URL("methods.safetensors", folder)),
);

/** Tensors and shape of an input. */
function input(name: string) {
  const q = readTensor(header, `${name}.q`);
  const k = readTensor(header, `${name}.k`);
  const v = readTensor(header, `${name}.v`);
  const [queryHeads = 0, tokens = 0, headDim = 0] = q.shape;
  const [kvHeads = 0] = k.shape;
  return {
    q: q.data,
    k: k.data,
    v: v.data,
    tokens,
    shape: { queryHeads, kvHeads, headDim },
  };
}

/** Our names for the reference's options. */
function ourOptions({ method, options }: Golden): Record<string, unknown> {
  const budget = options.max_capacity_prompt;
  if (method === "streamingllm") {
    return { budget, sinks: budget - options.window_size };
  }
  const groupReduce = options.gqa_score_agg;
  if (method === "h2o") {
    return { budget, window: options.window_size, groupReduce };
  }
  if (method === "l2norm") return { budget, skipLayers: options.skip_layers };
  return {
    ...(method === "adakv"
      ? { floor: options.floor_ratio, concentrate: options.normalize ?? false }
      : {}),
    budget,
    observationWindow: options.window_size,
    poolWidth: options.kernel_size,
    pool: options.pooling === "maxpool" ? "max" : "avg",
    groupReduce,
  };
}

/** Scores of a case: what decides between candidates. */
function scoresOf(golden: Golden, device: Device): number[][] {
  const { tokens, shape, ...tensors } = input(golden.input);
  const { options } = golden;
  using cache = new Cache(device, { ...shape, layers: 1, rowDtype: "f32" });
  using sequence = cache.sequence(options.granularity);
  sequence.record(tokens, {
    windowQueries: options.window_size ?? 0,
    columnMasses: ["all"],
  });
  sequence.recordLayer(0, tensors);
  using layer = sequence.layer(0);
  const pooled = golden.method === "h2o"
    ? layer.columnMass("all", options.gqa_score_agg)
    : golden.method === "l2norm"
    ? layer.keyNorm()
    : layer.observationScores({
      window: options.window_size,
      groupReduce: options.gqa_score_agg,
    })
      .pool(
        options.pooling === "maxpool" ? "max" : "avg",
        options.kernel_size ?? 1,
      );
  const values = [...pooled.read()];
  return Array.from(
    { length: pooled.heads },
    (_, h) => values.slice(h * pooled.rows, (h + 1) * pooled.rows),
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

for (
  const method of [
    "snapkv",
    "streamingllm",
    "h2o",
    "pyramidkv",
    "l2norm",
    "adakv",
  ]
) {
  const own = cases.filter((golden) =>
    golden.method === method && golden.indices && !golden.options.merge
  );
  Deno.test(`${method} keeps what the reference keeps, in ${own.length} cases`, () => {
    assert(own.length >= 8);
    using device = openDevice();
    for (const golden of own) {
      const { tokens: _, ...recorded } = input(golden.input);
      const { positions, keys } = applyMethod({
        ...recorded,
        method: resolveMethod(method),
        options: ourOptions(golden),
        granularity: golden.options.granularity,
        layer: golden.options.layer_idx ?? 0,
        layers: golden.options.num_hidden_layers ??
          (golden.options.layer_idx ?? 0) + 1,
        device,
        rows: true,
      });
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
        positions.map((rows) => rows.length * recorded.shape.headDim),
      );
    }
  });
}

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
