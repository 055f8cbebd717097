/** Every instruction set that this processor has, against the recorded logits, and against itself in batches. */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  crossConfigurations,
  generate,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { Device, type SimdLevel } from "../../ffi/mod.ts";
import { METHODS } from "../../methods/mod.ts";
import { readTensor } from "../../models/mod.ts";

const GOLDENS = fromFileUrl(new URL("../goldens/models", import.meta.url));
const MODELS = ["llama", "mistral-swa", "mixtral", "qwen3"];
const LEVELS: SimdLevel[] = ["generic", "avx2", "avx512", "avx512bf16"];

function supported(simd: SimdLevel): boolean {
  using device = new Device({ threads: 1, simd });
  return device.info().simd === simd;
}

function golden(name: string): { prompt: number[]; logits: Float32Array } {
  const { prompt } = JSON.parse(
    Deno.readTextFileSync(`${GOLDENS}/${name}/golden.json`),
  ) as { prompt: number[] };
  const file = `${GOLDENS}/${name}/golden.safetensors`;
  return { prompt, logits: readTensor(file, "logits").data };
}

async function logits(
  name: string,
  prompt: number[],
  options: { simd: SimdLevel; dtype: "f32" | "f16" | "bf16" },
): Promise<Float32Array> {
  using model = await LanguageModel.load(`${GOLDENS}/${name}`, options);
  using sequence = model.cache.sequence("kv_head");
  const prefill = sequence.prefill(model.native, prompt);
  await prefill.layers(0, model.shape.layers);
  const out = prefill.logits();
  prefill.end();
  return out;
}

function relativeError(out: Float32Array, ref: Float32Array): number {
  let difference = 0, norm = 0;
  for (let i = 0; i < ref.length; i++) {
    difference += (out[i]! - ref[i]!) ** 2;
    norm += ref[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

Deno.test("the generic level runs everywhere and a level that is too high gives a lower one", () => {
  assert(supported("generic"));
  using device = new Device({ threads: 1, simd: "avx512bf16" });
  assert(LEVELS.includes(device.info().simd));
});

for (const simd of LEVELS) {
  const ignore = !supported(simd);
  for (const [dtype, bound] of [["f32", 1e-4], ["bf16", 2e-2]] as const) {
    Deno.test({
      name: `${simd} kernels give the recorded logits in ${dtype}`,
      ignore,
      async fn() {
        for (const name of MODELS) {
          const { prompt, logits: expected } = golden(name);
          const error = relativeError(
            await logits(name, prompt, { simd, dtype }),
            expected,
          );
          assert(error <= bound, `${name}: relative error is ${error}`);
        }
      },
    });
  }
  Deno.test({
    name:
      `${simd} kernels give a sequence the same bits in a batch of 1 and of 13, on 1 thread and 2`,
    ignore,
    async fn() {
      const { prompt } = golden("llama");
      const outputs: Float32Array[][] = [];
      for (const [batch, threads] of [[1, 1], [13, 2]] as const) {
        using model = await LanguageModel.load(`${GOLDENS}/llama`, {
          simd,
          threads,
          dtype: "bf16",
        });
        const [one] = crossConfigurations(
          [METHODS.get("fullkv")!],
          [],
          {},
          "kv_head",
        );
        const generations = await generate(
          model,
          prompt,
          Array.from({ length: batch }, () => one!),
          { maxNewTokens: 6, logits: true },
        );
        outputs.push(generations.map(({ logits }) => logits!));
      }
      const alone = outputs[0]![0]!;
      for (const logits of outputs[1]!) assertEquals(logits, alone);
    },
  });
}
