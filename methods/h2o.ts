/**
 * H2O: keep heavy hitters, the tokens that gathered the most attention, and the most recent ones.
 *
 * A token's score is the attention probability that all prompt queries together gave it. Each stored head keeps its
 * `budget - window` highest tokens before the window, and the window.
 *
 * Paper: https://arxiv.org/abs/2306.14048
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: one choice after prefill, as in KVCache-Factory, instead of one eviction per token; and a short
 * window instead of half the budget.
 *
 * @module
 */
import { defineMethod, integer, type Method } from "./define.ts";
import { checkBudget, GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce } from "./types.ts";

/** Options of {@linkcode h2o}. */
export interface H2oOptions {
  /** Tokens kept per layer and stored head, the window included. */
  budget: number;
  /** Most recent tokens always kept. */
  window: number;
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
}

/** The H2O method. */
export const h2o: Method<H2oOptions> = defineMethod<H2oOptions>({
  name: "h2o",
  title: "H2O",
  summary: "Tokens that gathered the most attention, and recent ones",
  paper: "https://arxiv.org/abs/2306.14048",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "one choice after prefill, as in KVCache-Factory; the paper evicts at every token",
  options: {
    budget: integer(
      "Tokens kept per layer and stored head, the window included",
      { min: 1 },
    ),
    window: integer("Most recent tokens always kept", {
      min: 1,
      default: 8,
      source: "KVCache-Factory c97f9d7, run_longbench.py",
    }),
    groupReduce: GROUP_REDUCE,
  },
  create({ budget, window, groupReduce }) {
    checkBudget("h2o", budget, "window", window);
    return {
      observe: { columnMasses: ["all"] },
      afterPrefill(layer) {
        if (layer.length <= budget) return;
        using mass = layer.columnMass("all", groupReduce);
        using candidates = mass.fill(
          layer.length - window,
          layer.length,
          -Infinity,
        );
        using heavy = candidates.topK(budget - window);
        layer.retain(heavy, { last: window });
      },
      maxRows: ({ length, storedHeads }) =>
        storedHeads * Math.min(length, budget),
    };
  },
});
