/**
 * H2O: keep heavy hitters, the tokens that gathered the most attention, and the most recent ones.
 *
 * A token's score is the attention probability that all prompt queries together gave it. Each stored head keeps its
 * `budget - window` highest tokens before the window, and the window.
 *
 * Paper: https://arxiv.org/abs/2306.14048
 * Acts: once per layer, when prefill ends; with `schedule: "step"` also in every step, as in the paper: a token's mass grows
 * with each new query, and the lowest row outside the window goes.
 * Differs from the paper: by default one choice after prefill, as in KVCache-Factory; and a short window instead of half
 * the budget.
 *
 * @module
 */
import { integer, type Method } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce } from "./types.ts";

/** Options that only {@linkcode h2o} has. */
export interface HeavyHitterOptions {
  /** Most recent tokens always kept. */
  window: number;
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
}

/** Options of {@linkcode h2o}. */
export type H2oOptions = HeavyHitterOptions & EvictionOptions & BudgetOptions;

/** The H2O method. */
export const h2o: Method<H2oOptions> = defineEviction<HeavyHitterOptions>({
  name: "h2o",
  title: "H2O",
  summary: "Tokens that gathered the most attention, and recent ones",
  paper: "https://arxiv.org/abs/2306.14048",
  differs:
    "by default one choice after prefill, as in KVCache-Factory; the paper evicts at every token, as schedule step does",
  options: {
    window: integer("Most recent tokens always kept", {
      min: 1,
      default: 8,
      source: "KVCache-Factory c97f9d7, run_longbench.py",
    }),
    groupReduce: GROUP_REDUCE,
  },
  observe: () => ({ columnMasses: ["all"] }),
  protect: ({ window }) => ({ last: window }),
  score: (layer, { groupReduce }) => layer.columnMass("all", groupReduce),
  decode: (step, { groupReduce }) => ({
    statistic: step.mass({ from: "all", groupReduce }),
  }),
});
