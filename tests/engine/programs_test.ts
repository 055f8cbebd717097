/** Methods that act during generation: step programs and schedules, in real generation on small models. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  type Configuration,
  crossConfigurations,
  generate,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { modelChecks } from "../../eval/check_method.ts";
import {
  Cache,
  decode,
  Device,
  NativeModel,
  recordProgram,
} from "../../ffi/mod.ts";
import { loadMethod, METHODS, resolveMethod } from "../../methods/mod.ts";
import type { Granularity, Policy } from "../../methods/types.ts";
import { BUILD, MODEL_BUILD } from "../ffi/tiny.ts";

const MODELS = fromFileUrl(new URL("../goldens/models", import.meta.url));
const prompt = (length: number, seed = 0): number[] =>
  Array.from({ length }, (_, i) => (i * 37 + seed * 11 + i * i) % 250 + 3);

function configuration(
  name: string,
  given: Record<string, unknown>,
  granularity: Granularity = "kv_head",
): Configuration {
  return crossConfigurations([METHODS.get(name)!], [], given, granularity)[0]!;
}

/** Largest relative difference of two rows of logits. */
function distance(a: Float32Array, b: Float32Array): number {
  let difference = 0, size = 0;
  a.forEach((x, i) => {
    difference += (x - b[i]!) ** 2;
    size += x ** 2;
  });
  return Math.sqrt(difference / size);
}

for (const granularity of ["kv_head", "query_head"] as const) {
  for (const family of ["llama", "mistral-swa", "qwen3"]) {
    for (
      const [name, own] of [["h2o", { window: 6 }], ["streamingllm", {}], [
        "scissorhands",
        { window: 2, sinks: 2, groupReduce: "max" },
      ], ["scissorhands", {
        compat: "paper",
        historyWindow: 9,
        window: 3,
      }]] as const
    ) {
      const title = `${name} with ${
        JSON.stringify(own)
      } rolls on ${family} in ${granularity} layout as if it chose anew after every token`;
      Deno.test(title, async () => {
        using model = await LanguageModel.load(
          `${MODELS}/${family}`,
          MODEL_BUILD,
        );
        const options = { maxNewTokens: 24, logits: true };
        for (
          const [length, budget] of [[90, 40], [20, 32], [64, 64], [70, 33]]
        ) {
          const make = (schedule: string) =>
            configuration(name, {
              budget,
              schedule,
              ...own,
              // One row at a time, as the others choose.
              ...("compat" in own && schedule === "step"
                ? { dropShare: 0 }
                : {}),
            }, granularity);
          const [rolling, again, none] = await generate(
            model,
            prompt(length!),
            [make("step"), make("every:1"), make("prefill")],
            options,
          );
          assert(
            distance(rolling!.logits!, again!.logits!) < 1e-5,
            `${length} ${budget}: ${
              distance(rolling!.logits!, again!.logits!)
            }`,
          );
          // A sliding window of 32 sees no more than the sinks and recent rows that stay.
          const blind = name === "streamingllm" && family === "mistral-swa";
          if (!blind && length! + 24 > budget! + 8) {
            assert(distance(rolling!.logits!, none!.logits!) > 1e-4);
          }
        }
      });
    }
  }
}

/** Methods and parts that may act again, some of them with different numbers of rows per head. */
const AGAIN: [string, Record<string, unknown>][] = [
  ...[...METHODS].filter(([, method]) =>
    "schedule" in method.options && method.name !== "cam"
  ).map(([name]): [string, Record<string, unknown>] => [name, {}]),
  ["cam", { compat: "paper" }],
  ["snapkv", { budgetPolicy: "adaptive", merge: "weighted" }],
  ["snapkv", { budgetPolicy: "pyramid", pool: "avg" }],
  ["h2o", { budgetPolicy: "adaptive" }],
  ["l2norm", { budgetPolicy: "pyramid:4", skipLayers: [] }],
  ["scissorhands", { selection: "prob", historyWindow: 7 }],
  ["nacl", { randomRows: 5 }],
  ["h2o", { quant: "gear:4" }],
  ["snapkv", { quant: "kivi:4", budgetPolicy: "adaptive" }],
];
for (const [name, variant] of AGAIN) {
  const title = `${name} with ${
    JSON.stringify(variant)
  } acts again every 6 tokens and holds its budget`;
  Deno.test(title, async () => {
    using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
    const method = resolveMethod(name);
    const budget = 24;
    const given = {
      budget,
      schedule: "every:6",
      ...("observationWindow" in method.options
        ? { observationWindow: 4 }
        : {}),
      ...method.exampleOptions?.(model.shape),
      ...variant,
    };
    for (const granularity of method.granularities) {
      const one = configuration(name, given, granularity);
      // The engine holds the policy to maxRows, and the ledger to its promise, whenever the policy acts.
      const [length, newTokens] = [61, 27];
      const [first] = await generate(model, prompt(length), [one], {
        maxNewTokens: newTokens,
        logits: true,
      });
      const beside = await generate(
        model,
        prompt(length),
        [configuration("fullkv", {}), one, one],
        { maxNewTokens: newTokens, logits: true, chunk: 4 },
      );
      assertEquals(beside[1]!.logits, first!.logits);
      assertEquals(beside[2]!.logits, first!.logits);
      assertEquals(model.cache.ledger().residentBytes, 0);
    }
  });
}

Deno.test(
  "quest reads everything with an ample budget, and less with a small one",
  async () => {
    for (const family of ["llama", "mistral-swa", "qwen3"]) {
      using model = await LanguageModel.load(
        `${MODELS}/${family}`,
        MODEL_BUILD,
      );
      const quest = (budget: number, denseLayers: number, compat = "paper") =>
        configuration("quest", { budget, denseLayers, compat, pageSize: 8 });
      const layers = model.shape.layers;
      const [full, ample, dense, small, exact] = await generate(
        model,
        prompt(100),
        [
          configuration("fullkv", {}),
          quest(112, 0),
          quest(16, layers),
          quest(16, 0),
          quest(16, 0, "reference"),
        ],
        { maxNewTokens: 12, logits: true },
      );
      assertEquals(ample!.logits, full!.logits);
      assertEquals(dense!.logits, full!.logits);
      assertEquals(small!.cache.rows, full!.cache.rows);
      for (const one of [small, exact]) {
        assert(distance(full!.logits!, one!.logits!) > 1e-4);
      }
    }
  },
);

/** A model of one layer: its keys and values depend on the token and its position alone. */
function shallow(device: Device): NativeModel {
  const model = new NativeModel(device, {
    layers: 1,
    queryHeads: 4,
    kvHeads: 2,
    headDim: 16,
    hidden: 48,
    intermediate: 64,
    vocab: 90,
    weightDtype: "f32",
    normEps: 1e-5,
    ropeScale: 1,
    inverseFrequencies: Float32Array.from(
      { length: 8 },
      (_, i) => 100 ** (-i / 8),
    ),
    layerWindows: [0],
  });
  model.randomize(3);
  return model;
}

Deno.test(
  "streamingllm with compat paper sees a cache whose rows were counted anew",
  async () => {
    using device = new Device({ ...BUILD, threads: 1 });
    using model = shallow(device);
    const { layers, queryHeads, kvHeads, headDim } = model.config;
    const shape = { layers, queryHeads, kvHeads, headDim };
    using cache = new Cache(device, { ...shape, rowDtype: "f32" });
    const text = prompt(120).map((id) => id % 90);
    const [sinks, budget, length] = [4, 20, 50];
    for (const compat of ["paper", "reference"]) {
      const { method, options } = configuration("streamingllm", {
        budget,
        sinks,
        compat,
        schedule: "step",
      });
      const policy = method.create(options, shape);
      using sequence = cache.sequence("kv_head");
      const prefill = sequence.prefill(model, text.slice(0, length));
      await prefill.layers(0, 1);
      sequence.act(policy, 0);
      prefill.end();
      for (let end = length + 7; end <= text.length; end += 7) {
        await sequence.extend(model, text.slice(end - 7, end));
        assertEquals(sequence.rows(), [[budget, budget]]);
        using fresh = cache.sequence("kv_head");
        const seen = [
          ...text.slice(0, sinks),
          ...text.slice(end - (budget - sinks + 1), end),
        ];
        const again = fresh.prefill(model, seen);
        await again.layers(0, 1);
        again.end();
        const off = distance(fresh.logits(), sequence.logits());
        assert(
          compat === "paper" ? off < 1e-5 : off > 1e-3,
          `${compat} ${off}`,
        );
      }
    }
  },
);

Deno.test(
  "a long generation stays within budget and memory",
  async () => {
    using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
    const { layers } = model.shape;
    for (
      const [name, own] of [
        ["h2o", {}],
        ["streamingllm", { compat: "paper" }],
        ["scissorhands", {
          compat: "paper",
          historyWindow: 24,
          window: 8,
          selection: "topk",
        }],
        ["scissorhands", { selection: "prob", decay: 0.9, seed: 3 }],
      ] as const
    ) {
      const { method, options } = configuration(name, {
        budget: 64,
        schedule: "step",
        ...own,
      });
      const policy = method.create(options, model.shape);
      using sequence = model.cache.sequence("kv_head");
      const prefill = sequence.prefill(
        model.native,
        prompt(90),
        policy.observe,
      );
      for (let layer = 0; layer < layers; layer++) {
        await prefill.layers(layer, 1);
        sequence.act(policy, layer);
      }
      prefill.end();
      sequence.forget();
      await decode(model.native, model.cache, [sequence], 70);
      model.cache.resetPeak();
      const { residentBytes } = model.cache.ledger();
      for (let i = 0; i < 10; i++) {
        await decode(model.native, model.cache, [sequence], 100);
        assert(
          sequence.rows().flat().every((rows) => rows <= 64 && rows >= 32),
        );
        const ledger = model.cache.ledger();
        assertEquals(ledger.promisedBytes, ledger.ownedBytes);
        // In a step heads hold a row more, which may need a page of its own.
        assert(
          ledger.peakBytes <= residentBytes +
              layers * sequence.storedHeads * model.cache.pageBytes,
        );
      }
      assertEquals(sequence.describe().position, 90 + 1070 - 1);
    }
  },
);

Deno.test("a user's own method may act in every step", async () => {
  const path = new URL("../methods/fixtures/tova.ts", import.meta.url);
  const tova = await loadMethod(fromFileUrl(path));
  using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
  for (const granularity of tova.granularities) {
    for (const check of modelChecks(tova, model, granularity)) {
      await check.run();
    }
    // At a budget of two rows only the newest and the best of the others are left.
    const policy = tova.create({ budget: 2 }, model.shape);
    using sequence = model.cache.sequence(granularity);
    const prefill = sequence.prefill(model.native, prompt(30), policy.observe);
    for (let layer = 0; layer < model.shape.layers; layer++) {
      await prefill.layers(layer, 1);
      sequence.act(policy, layer);
    }
    prefill.end();
    for (let seen = 30; seen < 40; seen++) {
      await decode(model.native, model.cache, [sequence], 1);
      for (let head = 0; head < sequence.storedHeads; head++) {
        assertEquals(sequence.positions(0, head).length, 2);
        assertEquals(sequence.positions(0, head)[1], Math.max(29, seen - 1));
      }
    }
  }
});

Deno.test("DecodeRecorder refuses what makes no sense", () => {
  const facts = {
    layers: 2,
    queryHeads: 4,
    kvHeads: 2,
    headDim: 8,
    layer: 0,
    rows: [9, 9],
    observation: { windowQueries: 0, columnMasses: [] },
  };
  const refused = (
    decodeHook: Policy["decode"],
    kind: typeof RangeError | typeof TypeError,
    message: string,
  ) =>
    assertThrows(
      () => recordProgram({ decode: decodeHook! }, facts),
      kind,
      message,
    );
  refused((step) => step.mass({ decay: -1 }), RangeError, "decay is -1");
  refused((step) => step.mass({ from: "all" }), RangeError, '"all" is not');
  refused((step) => step.evict(step.position()), TypeError, "whenRowsExceed");
  refused(
    (step) =>
      step.whenRowsExceed(4, () => step.evict({ statistic: "position" })),
    TypeError,
    "of this recorder",
  );
  refused(
    (step) =>
      step.whenRowsExceed(4, () => step.evict(step.position(), { keep: 5 })),
    RangeError,
    "keep",
  );
  refused(
    (step) =>
      step.whenRowsExceed(4, () => step.evict(step.position(), { last: 5 })),
    RangeError,
    "keep",
  );
  refused(
    (step) => step.whenRowsExceed([4], () => step.evict(step.position())),
    RangeError,
    "each of the 2 stored heads",
  );
  refused(
    (step) => {
      step.mass({ decay: 1 });
      step.mass({ decay: 0.5 });
    },
    TypeError,
    "must come once",
  );
  assertEquals(
    recordProgram({
      decode: (step) =>
        step.every(
          4,
          () => step.whenRowsExceed([4, 6], () => step.evict(step.position())),
        ),
    }, facts).map(({ kind, head, every, above, keep }) => ({
      kind,
      head,
      every,
      above,
      keep,
    })),
    [
      { kind: "evict", head: 0, every: 4, above: 4, keep: 4 },
      { kind: "evict", head: 1, every: 4, above: 6, keep: 6 },
    ],
  );
});
