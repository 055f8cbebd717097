/**
 * Mistral: every layer has the sliding window, 4096 tokens where the file is silent, none where it says null.
 *
 * @module
 */
import type { Family } from "./_decoder.ts";

/** The Mistral family. */
export const mistral: Family = {
  architecture: "MistralForCausalLM",
  name: "mistral",
  rules: {
    defaults: {
      kvHeads: 8,
      maxPositions: 4096 * 32,
      normEps: 1e-6,
      theta: 10_000,
    },
    bias: "none",
    qkNorm: false,
    window: "all layers",
    defaultWindow: 4096,
    experts: false,
  },
};
