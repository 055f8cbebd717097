/**
 * Mixtral: Mistral with a mixture of experts; the probabilities of the chosen experts are scaled to sum 1.
 *
 * @module
 */
import type { Family } from "./_decoder.ts";

/** The Mixtral family. */
export const mixtral: Family = {
  architecture: "MixtralForCausalLM",
  name: "mixtral",
  rules: {
    defaults: {
      kvHeads: 8,
      maxPositions: 4096 * 32,
      normEps: 1e-5,
      theta: 1_000_000,
    },
    bias: "none",
    qkNorm: false,
    window: "all layers",
    defaultWindow: null,
    experts: true,
  },
};
