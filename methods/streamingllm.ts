/**
 * StreamingLLM: keep the first tokens and the most recent ones.
 *
 * Attention parks its surplus probability on the first few tokens, the sinks. Keeping them together with the last
 * `budget - sinks` prompt tokens keeps the model stable whatever lies between.
 *
 * Paper: https://arxiv.org/abs/2309.17453
 * Acts: once per layer, when prefill ends; with `schedule: "step"` also in every step, so that the cache rolls at constant
 * size.
 * Differs from the paper: the prompt is read with full attention before it is cut. By default, as in KVCache-Factory, it is
 * cut once and every row keeps its position; the paper is `schedule: "step"` with `compat: "paper"`, which counts positions
 * inside the cache.
 *
 * @module
 */
import { choice, integer, type Method } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";

/** Options that only {@linkcode streamingllm} has. */
export interface SinkOptions {
  /** First prompt tokens that are always kept. */
  sinks: number;
  /** Positions: true ones, or counted inside the cache. */
  compat: "reference" | "paper";
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
    "by default the prompt is cut once and rows keep their positions, as in KVCache-Factory; schedule step with compat paper evicts at every step and counts positions inside the cache, after a prompt read with full attention",
  options: {
    sinks: integer("First prompt tokens that are always kept", {
      default: 4,
      source: "paper, section 3.2; KVCache-Factory c97f9d7, run_longbench.py",
    }),
    compat: choice(
      "True positions, or the paper's, counted inside the cache (with schedule step)",
      ["reference", "paper"],
      { default: "reference", source: "KVCache-Factory c97f9d7" },
    ),
  },
  check({ compat, schedule }) {
    if (compat === "paper" && schedule !== "step") {
      throw new RangeError(
        `Cannot run "streamingllm" with compat paper as schedule must be step: it is "${schedule}"`,
      );
    }
  },
  protect: ({ sinks }) => ({ first: sinks }),
  decode(step, { sinks, compat }) {
    if (compat === "paper" && sinks > 0) step.countKeptRows(sinks);
    return { statistic: step.position() };
  },
});
