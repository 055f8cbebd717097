/** The promises of the runtime, for every registered method on small models of several families. */
import { assert, assertEquals } from "@std/assert";
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

/** Options that every method with a budget accepts for short prompts. */
function configuration(
  name: string,
  budget: number,
  granularity: Granularity,
): Configuration {
  const method = METHODS.get(name)!;
  const given: Record<string, unknown> = {};
  if ("observationWindow" in method.options) given.observationWindow = 4;
  if (name === "headkv") {
    // Different for each head, and for the model families alike: 3 layers of 4 query heads.
    given.headRows = Array.from({ length: 12 }, (_, head) => 3 * head);
  }
  const [one] = crossConfigurations([method], [budget], given, granularity);
  return one!;
}

for (const family of ["llama", "mistral-swa", "mixtral", "qwen3"]) {
  for (const [name, method] of METHODS) {
    for (const granularity of method.granularities) {
      Deno.test(`${name} on ${family} in ${granularity} layout keeps its promises`, async () => {
        using model = await LanguageModel.load(`${MODELS}/${family}`);
        const full = configuration("fullkv", 0, "kv_head");
        for (const length of [1, 3, 39, 40, 41, 130]) {
          const ids = prompt(length);
          const options = { maxNewTokens: 5, logits: true };
          const [expected] = await generate(model, ids, [full], options);
          const [ample] = await generate(model, ids, [
            configuration(name, Math.max(length, 40), granularity),
          ], options);
          assertEquals(
            ample!.logits,
            expected!.logits,
            "a budget as long as the prompt changed the logits",
          );
          const small = configuration(name, 40, granularity);
          const [alone] = await generate(model, ids, [small], options);
          for (const heads of alone!.cache.rows) {
            for (const rows of heads) {
              // What a layer may hold is checked by the engine itself; here, that uniform methods use it fully.
              if (["pyramidkv", "l2norm", "adakv", "headkv"].includes(name)) {
                continue;
              }
              assertEquals(
                rows,
                "budget" in method.options ? Math.min(length, 40) : length,
              );
            }
          }
          assertEquals(alone!.cache.promisedBytes, alone!.cache.residentBytes);
          // The same answer from a prefill that several configurations share.
          const shared = await generate(
            model,
            ids,
            [full, small, full],
            options,
          );
          assertEquals(shared[1]!.logits, alone!.logits);
          assertEquals(shared[2]!.logits, expected!.logits);
        }
        const ledger = model.cache.ledger();
        assertEquals([ledger.sequences, ledger.objects, ledger.residentBytes], [
          0,
          0,
          0,
        ]);
      });
    }
  }
}

Deno.test("one compressed prefill never holds more than one layer's full cache beside the compressed rest", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`);
  const length = 640;
  const [full] = await generate(model, prompt(length), [
    configuration("fullkv", 0, "kv_head"),
  ], { maxNewTokens: 1 });
  const [lean] = await generate(model, prompt(length), [
    configuration("snapkv", 64, "kv_head"),
  ], { maxNewTokens: 1 });
  const oneLayer = full!.cache.residentBytes / model.shape.layers;
  assert(lean!.cache.peakBytes <= oneLayer + lean!.cache.residentBytes);
});

Deno.test("generate draws the same tokens for the same seed and others for another", async () => {
  using model = await LanguageModel.load(`${MODELS}/llama`);
  const full = [configuration("fullkv", 0, "kv_head")];
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
  using model = await LanguageModel.load(`${MODELS}/llama`);
  const full = [configuration("fullkv", 0, "kv_head")];
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
