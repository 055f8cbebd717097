/** What processes on one device do, and models of any size. */
import { fromFileUrl } from "@std/path";
import {
  crossConfigurations,
  generate,
  type LanguageModel,
} from "../../eval/engine/mod.ts";
import { type Device, NativeModel } from "../../ffi/mod.ts";
import { resolveMethod } from "../../methods/mod.ts";
import { frequencies } from "../ffi/tiny.ts";

/** The model that generates. */
export const MODEL = fromFileUrl(
  new URL("../goldens/models/llama", import.meta.url),
);

/** Tokens of some methods, which decode as one batch, for some prompts. */
export async function answers(model: LanguageModel): Promise<number[][]> {
  const configurations = [
    ...crossConfigurations(
      ["fullkv", "snapkv", "adakv"].map(resolveMethod),
      [40],
      { observationWindow: 4 },
      "kv_head",
    ),
    ...crossConfigurations(
      [resolveMethod("h2o")],
      [40],
      { schedule: "step" },
      "kv_head",
    ),
  ];
  const tokens: number[][] = [];
  for (const length of [70, 150, 33]) {
    const prompt = Array.from(
      { length },
      (_, i) => (i * 37 + length + i * i) % 250 + 3,
    );
    const all = await generate(model, prompt, configurations, {
      maxNewTokens: 16,
    });
    tokens.push(...all.map((one) => one.tokens));
  }
  return tokens;
}

/** A model whose layers have some 400 MB each, with weights as the device's memory happens to be. */
export function bulky(device: Device, layers: number): NativeModel {
  const headDim = 64;
  return new NativeModel(device, {
    layers,
    hidden: 4096,
    queryHeads: 4,
    kvHeads: 1,
    headDim,
    intermediate: 16384,
    vocab: 32,
    weightDtype: "bf16",
    normEps: 1e-5,
    ropeScale: 1,
    inverseFrequencies: frequencies(headDim),
    layerWindows: Array<number>(layers).fill(0),
  });
}

/** How many layers make so many bytes, or nearly. */
export function bulkyLayers(device: Device, bytes: number): number {
  const [one, two] = [1, 2].map((layers) => {
    using model = bulky(device, layers);
    return model.bytes;
  }) as [number, number];
  return Math.floor((bytes - one) / (two - one)) + 1;
}
