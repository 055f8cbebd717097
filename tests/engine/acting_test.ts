/** What methods do before attention and in every step of a real generation, against a decoder in doubles. */
import { assert } from "@std/assert";
import { Cache, decode, Device } from "../../ffi/mod.ts";
import { resolveMethod, resolveOptions } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";
import { BUILD, frequencies, TINY } from "../ffi/tiny.ts";
import { keptBy, ranked, upTo } from "../methods/oracle/choice.ts";
import { choicesOf } from "../methods/oracle/expect.ts";
import type { Layer } from "../methods/oracle/layer.ts";
import { cam, type CamOptions } from "../methods/oracle/merge.ts";
import {
  type CacheRow,
  DoubleModel,
  type Hooks,
  type Projected,
} from "./_double_model.ts";

const TOKENS = 50;
const STEPS = 8;
const VOCAB = 40;
const PROMPT = upTo(TOKENS).map((i) => (i * 37 + i * i) % VOCAB);
const LAYERS = 3;

/** A method's part in doubles. */
type Acting = (
  facts: {
    shape: { queryHeads: number; kvHeads: number; headDim: number };
    storedHeads: number;
    // deno-lint-ignore no-explicit-any -- each method knows its own options
    options: any;
  },
) => Hooks & {
  /** Acts after a step's attention. */
  after?(cache: CacheRow[][][]): void;
};

/** A layer of the oracle, out of what was projected. */
function layerOf(
  tokens: Projected[],
  shape: { queryHeads: number; kvHeads: number; headDim: number },
): Layer {
  const flat = (what: "q" | "k" | "v") =>
    Float32Array.from(
      tokens[0]![what].flatMap((_, head) =>
        tokens.flatMap((token) => token[what][head]!)
      ),
    );
  return {
    ...shape,
    tokens: tokens.length,
    q: flat("q"),
    k: flat("k"),
    v: flat("v"),
  };
}

/** Quest: every step reads the pages that the oracle chooses for its query. */
const quest: Acting = ({ shape, storedHeads, options }) => ({
  read(layer, q, rows) {
    const tokens = rows[0]!.map((_, i): Projected => ({
      q,
      k: upTo(shape.kvHeads).map((head) => [
        ...Array.from(rows[head * storedHeads / shape.kvHeads]![i]!.key),
      ]),
      v: upTo(shape.kvHeads).map(() => [0]),
    }));
    const input = layerOf(tokens, shape);
    const task = { input, storedHeads, layer, layers: LAYERS, options };
    return choicesOf("quest", task).map(([choice], head) =>
      choice!.fixed.map((row) => rows[head]![row]!)
    );
  },
});

/** CAM: values are handed on before attention, then rows are evicted. */
const camActing: Acting = ({ shape, storedHeads, options }) => {
  const task = (layer: number, tokens: Projected[]) => ({
    input: layerOf(tokens, shape),
    storedHeads,
    layer,
    layers: LAYERS,
    options: options as CamOptions,
  });
  return {
    alter(layer, tokens, rows) {
      const { values, uncertain } = cam(task(layer, tokens));
      assert(!uncertain.includes(true), "a merge hangs on rounding");
      rows.forEach((own, head) =>
        own.forEach((row, i) => row.value = values[head]![i]!)
      );
    },
    evict: (layer, tokens, rows) =>
      cam(task(layer, tokens)).choices.map((choice, head) =>
        keptBy(choice).map((row) => rows[head]![row]!)
      ),
  };
};

/** H2O or Scissorhands in steps: masses grow by every query, the lowest goes when a head is full. */
const rolling = (
  protect: (
    options: Record<string, number>,
  ) => { first: number; last: number; decay: number },
): Acting =>
({ shape, storedHeads, options }) => {
  const { first, last, decay } = protect(options);
  const mass = upTo(LAYERS).map(() =>
    upTo(storedHeads).map(() => new Map<number, number>())
  );
  let newest = TOKENS - 1, isStep = false;
  const worst = (rows: CacheRow[], own: Map<number, number>): CacheRow => {
    const free = rows.filter(({ position }) =>
      position >= first && position <= newest - last
    );
    const scores = Float64Array.from(free, (row) => -own.get(row.position)!);
    return free[ranked(upTo(free.length), scores)[0]!]!;
  };
  const cut = (rows: CacheRow[], own: Map<number, number>): CacheRow[] => {
    while (rows.length > options.budget) {
      rows.splice(rows.indexOf(worst(rows, own)), 1);
    }
    return rows;
  };
  return {
    seen(layer, head, position, weight) {
      const size = shape.queryHeads / storedHeads;
      const own = mass[layer]![Math.floor(head / size)]!;
      // The first head of a group meets what earlier steps left.
      const before = own.get(position) ?? 0;
      const kept = isStep && head % size === 0 ? before * decay : before;
      own.set(position, kept + weight / size);
    },
    evict: (layer, _, rows) =>
      rows.map((own, head) => cut(own, mass[layer]![head]!)),
    after(cache) {
      if (isStep) newest++;
      isStep = true;
      cache.forEach((rows, layer) =>
        rows.forEach((own, head) => cut(own, mass[layer]![head]!))
      );
    },
  };
};

const CASES: [string, Record<string, unknown>, Acting][] = [
  ["quest", { budget: 20, pageSize: 8, window: 5, denseLayers: 1 }, quest],
  ["quest", {
    budget: 13,
    pageSize: 4,
    denseLayers: 0,
    groupReduce: "max",
    compat: "reference",
  }, quest],
  ["cam", { budget: 20, window: 6, draws: "threshold" }, camActing],
  ["cam", {
    budget: 30,
    window: 2,
    startRatio: 0.3,
    draws: "threshold",
    groupReduce: "max",
  }, camActing],
  [
    "h2o",
    { budget: 20, window: 4, schedule: "step" },
    rolling(({ window }) => ({ first: 0, last: window!, decay: 1 })),
  ],
  [
    "scissorhands",
    { budget: 18, window: 3, sinks: 2, decay: 0.8, schedule: "step" },
    rolling(({ window, sinks, decay }) => ({
      first: sinks!,
      last: window!,
      decay: decay!,
    })),
  ],
];

for (const [name, given, acting] of CASES) {
  const title = `${name} with ${
    JSON.stringify(given)
  } generates what a decoder in doubles does`;
  Deno.test(title, async () => {
    using device = new Device({ ...BUILD, threads: 1 });
    for (
      const [groupSize, headDim] of [[1, 64], [3, 80], [5, 96], [
        4,
        32,
      ]] as const
    ) {
      const shape = { queryHeads: 2 * groupSize, kvHeads: 2, headDim };
      using model = new DoubleModel(device, {
        ...shape,
        ...TINY,
        layers: LAYERS,
        vocab: VOCAB,
        inverseFrequencies: frequencies(headDim),
        layerWindows: upTo(LAYERS).map(() => 0),
      });
      const layers = LAYERS;
      using cache = new Cache(device, { ...shape, layers, rowDtype: "f32" });
      const method = resolveMethod(name);
      const options = resolveOptions(method, given);
      const policy = method.create(options, { ...shape, layers });
      for (const granularity of ["kv_head", "query_head"] as Granularity[]) {
        using sequence = cache.sequence(granularity);
        const prefill = sequence.prefill(model.native, PROMPT, policy.observe);
        for (let layer = 0; layer < layers; layer++) {
          await prefill.layers(layer, 1, { phase: "project" });
          sequence.prepare(policy, layer);
          await prefill.layers(layer, 1, { phase: "attend" });
          sequence.act(policy, layer);
        }
        prefill.end();
        const { tokens, logits } = await decode(
          model.native,
          cache,
          [sequence],
          STEPS,
          { logits: true },
        );
        const { storedHeads } = sequence;
        const hooks = acting({ shape, storedHeads, options });
        const double = model.prefill(PROMPT, storedHeads, hooks);
        hooks.after?.(double.cache);
        for (let step = 0; step < STEPS; step++) {
          const expected = step === 0 ? double.logits : model.step(
            tokens[0]![step - 1]!,
            TOKENS + step - 1,
            double.cache,
            hooks,
          );
          if (step > 0) hooks.after?.(double.cache);
          let [difference, size] = [0, 0];
          expected.forEach((x, i) => {
            difference += (x - logits![step * VOCAB + i]!) ** 2;
            size += x * x;
          });
          const error = Math.sqrt(difference / size);
          assert(
            error < 1e-5,
            `${granularity}, groups of ${groupSize}, step ${step}: ${error}`,
          );
        }
      }
    }
  });
}
