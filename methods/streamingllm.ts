/**
 * StreamingLLM: keep the first tokens and the most recent ones.
 *
 * Attention parks its surplus probability on the first few tokens, the sinks. Keeping them together with the last
 * `budget - sinks` prompt tokens keeps the model stable whatever lies between.
 *
 * Paper: https://arxiv.org/abs/2309.17453
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: the paper evicts at every decode step and counts positions inside the cache; here, as in
 * KVCache-Factory, the prompt is cut once and every row keeps its position.
 *
 * @module
 */
import { defineMethod, integer, type Method } from "./define.ts";

/** Options of {@linkcode streamingllm}. */
export interface StreamingLlmOptions {
  /** Tokens kept per layer and stored head, sinks included. */
  budget: number;
  /** First prompt tokens that are always kept. */
  sinks: number;
}

/** The StreamingLLM method. */
export const streamingllm: Method<StreamingLlmOptions> = defineMethod<
  StreamingLlmOptions
>({
  name: "streamingllm",
  title: "StreamingLLM",
  summary: "First tokens (sinks) and most recent tokens",
  paper: "https://arxiv.org/abs/2309.17453",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "the prompt is cut once and rows keep their positions, as in KVCache-Factory; the paper evicts at every step and counts positions inside the cache",
  options: {
    budget: integer("Tokens kept per layer and stored head, sinks included", {
      min: 1,
    }),
    sinks: integer("First prompt tokens that are always kept", {
      default: 4,
      source: "paper, section 3.2; KVCache-Factory c97f9d7, run_longbench.py",
    }),
  },
  create({ budget, sinks }) {
    if (budget <= sinks) {
      throw new RangeError(
        `Cannot run "streamingllm" as budget must exceed sinks: budget is ${budget}, sinks is ${sinks}`,
      );
    }
    return {
      afterPrefill(layer) {
        if (layer.length <= budget) return;
        layer.retain(null, { first: sinks, last: budget - sinks });
      },
      maxRows: ({ length, storedHeads }) =>
        storedHeads * Math.min(length, budget),
    };
  },
});
