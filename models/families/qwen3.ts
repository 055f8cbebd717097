/**
 * Qwen 3: query and key heads are normalised before rotation; windows as in Qwen 2.
 *
 * @module
 */
import type { Family } from "./_decoder.ts";

/** The Qwen 3 family. */
export const qwen3: Family = {
  architecture: "Qwen3ForCausalLM",
  name: "qwen3",
  rules: {
    defaults: {
      kvHeads: 32,
      headDim: 128,
      maxPositions: 32_768,
      normEps: 1e-6,
      theta: 10_000,
    },
    bias: "attention_bias",
    qkNorm: true,
    window: "by layer",
    defaultWindow: 4096,
    experts: false,
  },
};
