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
import { integer, type Method } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";

/** Options that only {@linkcode streamingllm} has. */
export interface SinkOptions {
  /** First prompt tokens that are always kept. */
  sinks: number;
}

/** Options of {@linkcode streamingllm}. */
export type StreamingLlmOptions = SinkOptions & EvictionOptions & BudgetOptions;

/** The StreamingLLM method. It scores nothing: what is not a sink is kept by recency. */
export const streamingllm: Method<StreamingLlmOptions> = defineEviction<
  SinkOptions
>({
  name: "streamingllm",
  title: "StreamingLLM",
  summary: "First tokens (sinks) and most recent tokens",
  paper: "https://arxiv.org/abs/2309.17453",
  differs:
    "the prompt is cut once and rows keep their positions, as in KVCache-Factory; the paper evicts at every step and counts positions inside the cache",
  options: {
    sinks: integer("First prompt tokens that are always kept", {
      default: 4,
      source: "paper, section 3.2; KVCache-Factory c97f9d7, run_longbench.py",
    }),
  },
  protect: ({ sinks }) => ({ first: sinks }),
});
