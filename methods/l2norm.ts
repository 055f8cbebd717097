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
import { defineMethod, integer, integers, type Method } from "./define.ts";

/** Options of {@linkcode l2norm}. */
export interface L2NormOptions {
  /** Tokens kept per stored head in each layer that is compressed. */
  budget: number;
  /** Layers that keep everything. */
  skipLayers: number[];
}

/** The L2Norm method. */
export const l2norm: Method<L2NormOptions> = defineMethod<L2NormOptions>({
  name: "l2norm",
  title: "L2Norm",
  summary: "Tokens with the shortest keys",
  paper: "https://arxiv.org/abs/2406.11430",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "one choice after prefill, as in KVCache-Factory; the paper compresses as the cache grows",
  options: {
    budget: integer("Tokens kept per stored head in each compressed layer", {
      min: 1,
    }),
    skipLayers: integers("Layers that keep everything", {
      default: [0, 1],
      source: "the paper and KVCache-Factory c97f9d7",
    }),
  },
  create({ budget, skipLayers }) {
    const skipped = new Set(skipLayers);
    return {
      afterPrefill(layer) {
        if (layer.length <= budget || skipped.has(layer.layer)) return;
        using norm = layer.keyNorm();
        using shortness = norm.affine(-1, 0);
        using kept = shortness.topK(budget);
        layer.retain(kept);
      },
      maxRows: ({ length, layer, storedHeads }) =>
        storedHeads * (skipped.has(layer) ? length : Math.min(length, budget)),
    };
  },
});
