/** Methods that act during generation: step programs and schedules, in real generation on small models. */
import { assert } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  type Configuration,
  crossConfigurations,
  generate,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { METHODS } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";

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
      const [name, own] of [["h2o", { window: 6 }], [
        "streamingllm",
        {},
      ]] as const
    ) {
      Deno.test(`${name} rolls on ${family} in ${granularity} layout as if it chose anew after every token`, async () => {
        using model = await LanguageModel.load(`${MODELS}/${family}`);
        const options = { maxNewTokens: 24, logits: true };
        for (
          const [length, budget] of [[90, 40], [20, 32], [64, 64], [70, 33]]
        ) {
          const make = (schedule: string) =>
            configuration(name, { budget, schedule, ...own }, granularity);
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
