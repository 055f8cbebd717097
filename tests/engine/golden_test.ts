/** The forward pass and whole generations against the recorded ones of Hugging Face and the reference repository. */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { generate, LanguageModel } from "../../eval/engine/mod.ts";
import { crossConfigurations } from "../../eval/engine/mod.ts";
import { METHODS } from "../../methods/mod.ts";
import { readTensor } from "../../models/mod.ts";
import { MODEL_BUILD } from "../ffi/tiny.ts";

const GOLDENS = fromFileUrl(new URL("../goldens", import.meta.url));
const MODELS = [
  "llama",
  "llama31-tied",
  "mistral",
  "mistral-swa",
  "mixtral",
  "qwen2",
  "qwen3",
];

function relativeError(out: Float32Array, ref: Float32Array): number {
  assertEquals(out.length, ref.length);
  let difference = 0, norm = 0;
  for (let i = 0; i < ref.length; i++) {
    difference += (out[i]! - ref[i]!) ** 2;
    norm += ref[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** Greedy tokens must be equal up to the first place where the golden's two best logits nearly tie. */
function assertGreedy(
  tokens: number[],
  golden: number[],
  logits: Float32Array,
  vocab: number,
): void {
  for (let i = 0; i < golden.length; i++) {
    if (tokens[i] === golden[i]) continue;
    const row = [...logits.subarray(i * vocab, (i + 1) * vocab)].sort((a, b) =>
      b - a
    );
    assert(
      row[0]! - row[1]! < 1e-3,
      `token ${i} is ${tokens[i]}, expected ${golden[i]}`,
    );
    return;
  }
}

for (const name of MODELS) {
  const folder = `${GOLDENS}/models/${name}`;
  for (const [dtype, bound] of [["f32", 1e-4], ["bf16", 2e-2]] as const) {
    Deno.test(`${name} in ${dtype} gives the logits of transformers within ${bound}`, async () => {
      const golden = JSON.parse(
        Deno.readTextFileSync(`${folder}/golden.json`),
      ) as { prompt: number[]; greedy: number[] };
      const expected =
        readTensor(`${folder}/golden.safetensors`, "logits").data;
      using model = await LanguageModel.load(folder, { ...MODEL_BUILD, dtype });
      using sequence = model.cache.sequence("kv_head");
      const prefill = sequence.prefill(model.native, golden.prompt);
      await prefill.layers(0, model.shape.layers);
      const error = relativeError(prefill.logits(), expected);
      assert(error <= bound, `relative error is ${error}`);
      prefill.end();
      if (dtype !== "f32") return;
      const configurations = crossConfigurations(
        [METHODS.get("fullkv")!],
        [],
        {},
        "kv_head",
      );
      const [generation] = await generate(
        model,
        golden.prompt,
        configurations,
        {
          maxNewTokens: golden.greedy.length,
          logits: true,
        },
      );
      assertGreedy(
        generation!.tokens,
        golden.greedy,
        generation!.logits!,
        model.native.config.vocab,
      );
    });
  }
}

interface Case {
  case: string;
  model: string;
  method: string;
  options: {
    "max_capacity_prompt"?: number;
    "window_size"?: number;
    "kernel_size"?: number;
    pooling?: string;
  };
  prompt: number[];
  tokens: number[];
  "cache_rows_per_layer": number[];
}

/** Options of the reference in our words. */
function translate({ method, options }: Case): Record<string, unknown> {
  const budget = options.max_capacity_prompt!;
  if (method === "streamingllm") {
    return { budget, sinks: budget - options.window_size! };
  }
  if (method === "h2o") return { budget, window: options.window_size };
  if (method === "l2norm") return { budget };
  if (method === "snapkv" || method === "pyramidkv") {
    return {
      budget,
      observationWindow: options.window_size,
      poolWidth: options.kernel_size,
      pool: options.pooling === "maxpool" ? "max" : "avg",
      groupReduce: "mean",
    };
  }
  return {};
}

const cases = JSON.parse(
  Deno.readTextFileSync(`${GOLDENS}/e2e/e2e.json`),
) as Case[];
for (const one of cases.filter(({ method }) => METHODS.has(method))) {
  Deno.test(`a whole generation agrees with the reference: ${one.case}`, async () => {
    using model = await LanguageModel.load(
      `${GOLDENS}/models/${one.model}`,
      MODEL_BUILD,
    );
    const configurations = crossConfigurations(
      [METHODS.get(one.method)!],
      [],
      translate(one),
      "kv_head",
    );
    const [generation] = await generate(model, one.prompt, configurations, {
      maxNewTokens: one.tokens.length,
      logits: true,
    });
    assertEquals(
      generation!.cache.rows.map((heads) => heads[0]),
      one.cache_rows_per_layer,
    );
    const expected =
      readTensor(`${GOLDENS}/e2e/e2e.safetensors`, `${one.case}.logits`).data;
    const error = relativeError(generation!.logits!, expected);
    assert(error <= 1e-4, `relative error is ${error}`);
    assertGreedy(
      generation!.tokens,
      one.tokens,
      expected,
      model.native.config.vocab,
    );
  });
}
