/**
 * SnapKV: keep the prompt tokens that the end of the prompt attends to.
 *
 * The queries of the observation window vote for earlier tokens with their attention probabilities; the votes are
 * summed, reduced over the query heads of a stored head and pooled along the tokens, so that neighbours survive
 * together. Each stored head keeps its best `budget - observationWindow` tokens and the window itself.
 *
 * Paper: https://arxiv.org/abs/2404.14469
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: with `kv_head` granularity the query heads of one KV head vote together (`groupReduce`), so
 * that the cache stays as small as the model's; with `query_head` each votes alone, as in the authors' code. At
 * `length = budget` nothing happens; KVCache-Factory then permutes the rows, which attention does not see.
 *
 * @module
 */
import { choice, defineMethod, integer, type Method } from "./define.ts";
import type { GroupReduce } from "./types.ts";

/** Options of {@linkcode snapkv}. */
export interface SnapKvOptions {
  /** Tokens kept per layer and stored head, the window included. */
  budget: number;
  /** Last prompt tokens whose queries vote; always kept themselves. */
  observationWindow: number;
  /** Pooling width, tokens, odd; 1 pools nothing. */
  poolWidth: number;
  /** Pooling kind; average counts tokens beyond the border as 0. */
  pool: "max" | "avg";
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
}

/** Where the defaults come from; the LongBench runner of the same revision uses an observation window of 8. */
const SOURCE = "KVCache-Factory c97f9d7, run_needle_in_haystack.py";

/** The SnapKV method. */
export const snapkv: Method<SnapKvOptions> = defineMethod<SnapKvOptions>({
  name: "snapkv",
  title: "SnapKV",
  summary: "Tokens that the last prompt queries attend to, pooled",
  paper: "https://arxiv.org/abs/2404.14469",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "with kv_head granularity the query heads of one KV head vote together (groupReduce)",
  options: {
    budget: integer(
      "Tokens kept per layer and stored head, the observation window included",
      { min: 1 },
    ),
    observationWindow: integer(
      "Last prompt tokens whose queries vote; always kept",
      { min: 1, default: 32, source: SOURCE },
    ),
    poolWidth: integer("Pooling width, tokens, odd", {
      min: 1,
      odd: true,
      default: 7,
      source: SOURCE,
    }),
    pool: choice("Pooling kind", ["max", "avg"], {
      default: "max",
      source: SOURCE,
    }),
    groupReduce: choice(
      "Reduction over the query heads of one KV head",
      ["mean", "max", "sum"],
      { default: "mean", source: "KVCache-Factory c97f9d7, gqa_score_agg" },
    ),
  },
  create({ budget, observationWindow, poolWidth, pool, groupReduce }) {
    if (budget <= observationWindow) {
      throw new RangeError(
        `Cannot run "snapkv" as budget must exceed observationWindow: budget is ${budget}, observationWindow is ${observationWindow}`,
      );
    }
    return {
      observe: { windowQueries: observationWindow },
      afterPrefill(layer) {
        if (layer.length <= budget) return;
        using votes = layer.observationScores({
          window: observationWindow,
          groupReduce,
        });
        using pooled = votes.pool(pool, poolWidth);
        using kept = pooled.topK(budget - observationWindow);
        layer.retain(kept, { last: observationWindow });
      },
      maxRows: ({ length, storedHeads }) =>
        storedHeads * Math.min(length, budget),
    };
  },
});
