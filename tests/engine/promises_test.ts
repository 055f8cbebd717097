/** The promises of the runtime, for every registered method on small models of several families. */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  checkedOptions,
  modelChecks,
  shapeChecks,
} from "../../eval/check_method.ts";
import {
  type Configuration,
  generate,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { Device } from "../../ffi/mod.ts";
import { type AnyMethod, METHODS } from "../../methods/mod.ts";
import type { Granularity, Policy } from "../../methods/types.ts";
import { BUILD, MODEL_BUILD } from "../ffi/tiny.ts";

const MODELS = fromFileUrl(new URL("../goldens/models", import.meta.url));
const prompt = (length: number, seed = 0): number[] =>
  Array.from({ length }, (_, i) => (i * 37 + seed * 11 + i * i) % 250 + 3);

/** A configuration with the small options of the shared checks. */
function configuration(
  model: LanguageModel,
  name: string,
  budget: number,
  granularity: Granularity,
): Configuration {
  const method = METHODS.get(name)!;
  const options = checkedOptions(method, model.shape, budget);
  return { method, options, granularity };
}

for (const family of ["llama", "mistral-swa", "mixtral", "qwen3"]) {
  for (const [name, method] of METHODS) {
    for (const granularity of method.granularities) {
      Deno.test(`${name} on ${family} in ${granularity} layout keeps its promises`, async () => {
        using model = await LanguageModel.load(
          `${MODELS}/${family}`,
          MODEL_BUILD,
        );
        for (const check of modelChecks(method, model, granularity)) {
          await check.run();
        }
      });
    }
  }
}

for (const [name, method] of METHODS) {
  Deno.test(`${name} keeps its promises for all group sizes and head widths`, async () => {
    using device = new Device(BUILD);
    for (const check of shapeChecks(method, device)) await check.run();
  });
}

/** Parts that are exchanged; each on one method of every kind of score. */
const COMPOSITIONS: [string, Record<string, unknown>][] = [
  ["snapkv", { budgetPolicy: "adaptive", merge: "weighted" }],
  ["h2o", { budgetPolicy: "pyramid", merge: "pivot" }],
  ["h2o", { budgetPolicy: "adaptive:0.5" }],
  ["l2norm", { budgetPolicy: "pyramid:4", merge: "weighted" }],
  ["streamingllm", { budgetPolicy: "pyramid", merge: "pivot" }],
  ["nacl", { randomRows: 12, budgetPolicy: "adaptive" }],
  ["nacl", { proxyMode: "edges", sinks: 3, temperature: 0, randomRows: 30 }],
  ["snapkv", {
    budgetPolicy: "adaptive",
    merge: "weighted",
    quant: "kivi:4",
  }],
  ["h2o", { schedule: "every:2", quant: "gear:2" }],
  ["adakv", { schedule: "every:2", merge: "weighted" }],
  ["snapkv", {
    budgetPolicy: "adaptive",
    schedule: "every:2",
    quant: "kvquant:2",
  }],
  ["l2norm", { schedule: "every:3", merge: "pivot" }],
  ["cam", { compat: "paper", schedule: "every:2" }],
  ["streamingllm", { schedule: "step" }],
  ["fullkv", { quant: "kvquant:3" }],
  ["minference", { pattern: "stream_llm", firstSize: 4, secondSize: 30 }],
  ["quest", { quant: "kivi:4", denseLayers: 0, window: 5 }],
  ["quest", { quant: "kvquant:4", denseLayers: 0, compat: "reference" }],
  ["minicache", { firstShare: 0, keepRatio: 0.2 }],
  ["minicache", { firstShare: 0, compat: "paper", threshold: 0.3 }],
  ["cam", { compat: "paper" }],
  ["headkv", { compat: "product" }],
  ["pyramidkv", { compat: "paper", merge: "weighted" }],
  ["fullkv", { quant: "kivi:4" }],
  ["kivi", { bits: 2, residual: 0 }],
  ["kivi", { bits: 8, compat: "reference" }],
  ["kvquant", { bits: 3, residual: 5 }],
  ["gear", { bits: 2, residual: 0, rank: 2 }],
  ["think", { fullRows: 5, pruneRatio: 0.5 }],
];
for (const [name, variant] of COMPOSITIONS) {
  Deno.test(`${name} with ${JSON.stringify(variant)} keeps its promises`, async () => {
    using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
    const method = METHODS.get(name)!;
    for (const granularity of method.granularities) {
      for (const check of modelChecks(method, model, granularity, variant)) {
        await check.run();
      }
    }
  });
}

Deno.test("a method that breaks its promises is found out", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
  const good = METHODS.get("snapkv")!;
  const broken = (changes: (policy: Policy) => Partial<Policy>): AnyMethod => ({
    ...good,
    create(options, shape) {
      const policy = good.create(options, shape);
      return { ...policy, ...changes(policy) };
    },
  });
  let calls = 0;
  const cases: [AnyMethod, string][] = [
    [broken(() => ({ maxRows: () => 1 })), "may hold 1 rows"],
    [broken(() => ({ keeps: { first: 4 } })), "keep protected rows"],
    [
      broken(() => ({
        afterPrefill: (layer) =>
          layer.retain(null, { first: 2 + calls++ % 5, last: 30 }),
      })),
      "same logits",
    ],
    [
      broken(() => ({
        afterPrefill: (layer) => layer.retain(null, { last: 10 }),
        keeps: {},
      })),
      "those of FullKV",
    ],
  ];
  for (const [method, message] of cases) {
    const errors: string[] = [];
    for (const check of modelChecks(method, model, "kv_head")) {
      await check.run().catch((error: Error) => errors.push(error.message));
    }
    assert(errors.some((text) => text.includes(message)), errors.join("; "));
  }
});

Deno.test("one compressed prefill never holds more than one layer's full cache beside the compressed rest", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
  const length = 640;
  const [full] = await generate(model, prompt(length), [
    configuration(model, "fullkv", 0, "kv_head"),
  ], { maxNewTokens: 1 });
  const [lean] = await generate(model, prompt(length), [
    configuration(model, "snapkv", 64, "kv_head"),
  ], { maxNewTokens: 1 });
  const oneLayer = full!.cache.residentBytes / model.shape.layers;
  assert(lean!.cache.peakBytes <= oneLayer + lean!.cache.residentBytes);
});

Deno.test("generate draws the same tokens for the same seed and others for another", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
  const full = [configuration(model, "fullkv", 0, "kv_head")];
  const draw = async (seed: number) =>
    (await generate(model, prompt(20), full, {
      maxNewTokens: 12,
      temperature: 1,
      topP: 0.95,
      topK: 50,
      seed,
    }))[0]!.tokens;
  assertEquals(await draw(1), await draw(1));
  assert(String(await draw(1)) !== String(await draw(2)));
});

Deno.test("generate stops at stop tokens, not before minNewTokens, and leaves the stop token out", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`, MODEL_BUILD);
  const full = [configuration(model, "fullkv", 0, "kv_head")];
  const [free] = await generate(model, prompt(20), full, { maxNewTokens: 8 });
  const stop = [free!.tokens[0]!];
  const [stopped] = await generate(model, prompt(20), full, {
    maxNewTokens: 8,
    stop,
  });
  assertEquals([
    stopped!.tokens.length,
    stopped!.stopReason,
    stopped!.stopToken,
  ], [0, "stop", stop[0]]);
  const [later] = await generate(model, prompt(20), full, {
    maxNewTokens: 8,
    stop,
    minNewTokens: 2,
  });
  assert(later!.tokens.length >= 2);
});
