/**
 * L2Norm: keep the tokens whose keys are short.
 *
 * Keys of small Euclidean norm tend to get much attention, so the norm stands in for attention scores: nothing has to be
 * observed. The first layers, where this does not hold, keep everything.
 *
 * Paper: https://arxiv.org/abs/2406.11430
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: one choice after prefill, as in KVCache-Factory; recent tokens are not protected there either.
 *
 * @module
 */
import { integers, type Method } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";

/** Options that only {@linkcode l2norm} has. */
export interface KeyNormOptions {
  /** Layers that keep everything. */
  skipLayers: number[];
}

/** Options of {@linkcode l2norm}. */
export type L2NormOptions = KeyNormOptions & EvictionOptions & BudgetOptions;

/** The L2Norm method. */
export const l2norm: Method<L2NormOptions> = defineEviction<KeyNormOptions>({
  name: "l2norm",
  title: "L2Norm",
  summary: "Tokens with the shortest keys",
  paper: "https://arxiv.org/abs/2406.11430",
  differs:
    "one choice after prefill, as in KVCache-Factory; the paper compresses as the cache grows",
  options: {
    skipLayers: integers("Layers that keep everything", {
      default: [0, 1],
      source: "the paper and KVCache-Factory c97f9d7",
    }),
  },
  exempt: (layer, { skipLayers }) => skipLayers.includes(layer),
  score(layer) {
    using norm = layer.keyNorm();
    return norm.affine(-1, 0);
  },
  // Keys of different heads differ in scale.
  comparable: false,
});
