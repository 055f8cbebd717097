/**
 * Qwen 2 and 2.5: biases on query, key and value. Where `use_sliding_window` is set, `layer_types` says which layers
 * have the window, or all from `max_window_layers` on.
 *
 * @module
 */
import type { Family } from "./_decoder.ts";

/** The Qwen 2 family. */
export const qwen2: Family = {
  architecture: "Qwen2ForCausalLM",
  name: "qwen2",
  rules: {
    defaults: {
      kvHeads: 32,
      maxPositions: 32_768,
      normEps: 1e-6,
      theta: 10_000,
    },
    bias: "qkv",
    qkNorm: false,
    window: "by layer",
    defaultWindow: 4096,
    experts: false,
  },
};
