/**
 * The observation window's vote: what SnapKV and the methods built on it share.
 *
 * @module
 */
import { choice, integer } from "../define.ts";
import type {
  GroupReduce,
  LayerContext,
  OptionSpec,
  Scores,
} from "../types.ts";

/** How the observation window votes. */
export interface VoteOptions {
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

/** Reduction over a group, for any method that scores with queries. */
export const GROUP_REDUCE: OptionSpec<GroupReduce> = choice(
  "Reduction over the query heads of one KV head",
  ["mean", "max", "sum"],
  { default: "mean", source: "KVCache-Factory c97f9d7, gqa_score_agg" },
);

/** Specs of {@linkcode VoteOptions}. */
export const VOTE_OPTIONS: {
  [K in keyof VoteOptions]: OptionSpec<VoteOptions[K]>;
} = {
  observationWindow: integer(
    "Last prompt tokens whose queries vote; always kept",
    {
      min: 1,
      default: 32,
      source: SOURCE,
    },
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
  groupReduce: GROUP_REDUCE,
};

/** Pooled votes for the rows before the window: `[storedHeads, length - observationWindow]`. */
export function windowVotes(
  layer: LayerContext,
  options: VoteOptions,
  over: "sum" | "mean" = "sum",
): Scores {
  using votes = layer.observationScores({
    window: options.observationWindow,
    groupReduce: options.groupReduce,
    over,
  });
  return votes.pool(options.pool, options.poolWidth);
}
