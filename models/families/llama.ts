/**
 * Llama 1 to 3.x: the plain decoder; `attention_bias` adds biases to all four projections of attention.
 *
 * @module
 */
import type { Family } from "./_decoder.ts";

/** The Llama family. */
export const llama: Family = {
  architecture: "LlamaForCausalLM",
  name: "llama",
  rules: {
    defaults: { maxPositions: 2048, normEps: 1e-6, theta: 10_000 },
    bias: "attention_bias",
    qkNorm: false,
    window: "none",
    defaultWindow: null,
    experts: false,
  },
};
