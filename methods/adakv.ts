/**
 * AdaKV: SnapKV's votes, with each layer's budget dealt out to its heads by need.
 *
 * The best votes of all heads of a layer compete for the layer's rows: a head that spreads its attention keeps more than
 * one that gathers it. A floor keeps every head alive. Heads then hold different numbers of rows, and only those.
 *
 * Paper: https://arxiv.org/abs/2407.11550
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: rounding follows KVCache-Factory: the floor is cut to whole rows and each head's share rounded, so
 * that a layer's sum may lie a few rows off its budget.
 *
 * @module
 */
import { defineMethod, flag, integer, type Method, real } from "./define.ts";
import {
  checkBudget,
  VOTE_OPTIONS,
  type VoteOptions,
  windowVotes,
} from "./parts/votes.ts";

/** Options of {@linkcode adakv}. */
export interface AdaKvOptions extends VoteOptions {
  /** Mean tokens kept per stored head, the window included. */
  budget: number;
  /** Share of the budget that every head gets, whatever its votes. */
  floor: number;
  /** Weigh each head's votes by how much of them its best ones hold, before heads compete. */
  concentrate: boolean;
}

/** Rounds to the nearest integer, ties to the even one. */
function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + low % 2 : Math.round(x);
}

/**
 * Rows per head, without the window.
 * @param counts how many of the layer's best votes are each head's
 * @param base mean rows per head
 * @param floor share that every head gets
 * @param candidates rows there are
 */
export function adaptiveBudgets(
  counts: ArrayLike<number>,
  base: number,
  floor: number,
  candidates: number,
): number[] {
  const least = Math.trunc(base * floor);
  return Array.from(
    counts,
    (count) =>
      Math.min(
        candidates,
        roundHalfEven(Math.fround(Math.fround(count * (1 - floor)) + least)),
      ),
  );
}

/** The AdaKV method. */
export const adakv: Method<AdaKvOptions> = defineMethod<AdaKvOptions>({
  name: "adakv",
  title: "AdaKV",
  summary: "SnapKV's votes, budgets dealt out to heads by need",
  paper: "https://arxiv.org/abs/2407.11550",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "rounding as in KVCache-Factory: a layer's sum may lie a few rows off its budget",
  options: {
    budget: integer(
      "Mean tokens kept per stored head, the observation window included",
      { min: 1 },
    ),
    ...VOTE_OPTIONS,
    floor: real("Share of the budget that every head gets", {
      min: 0,
      max: 1,
      default: 0.2,
      source: "KVCache-Factory c97f9d7, floor_ratio",
    }),
    concentrate: flag(
      "Weigh each head's votes by how much of them its best ones hold",
      {
        default: true,
        source: "KVCache-Factory c97f9d7, normalize",
      },
    ),
  },
  create(options) {
    const { budget, observationWindow: window, floor, concentrate } = options;
    checkBudget("adakv", budget, "observationWindow", window);
    const base = budget - window;
    return {
      observe: { windowQueries: window },
      afterPrefill(layer) {
        if (layer.length <= budget) return;
        using votes = windowVotes(layer, options, "mean");
        using weighed = concentrate
          ? votes.concentrate(base)
          : votes.affine(1, 0);
        const counts = weighed.share(layer.storedHeads * base);
        const kept = adaptiveBudgets(
          counts,
          base,
          floor,
          layer.length - window,
        );
        using top = votes.topK(kept);
        layer.retain(top, { last: window });
      },
      // Each head's share is rounded by at most half a row.
      maxRows: ({ length, storedHeads }) =>
        Math.min(storedHeads * length, Math.ceil(storedHeads * (budget + 0.5))),
    };
  },
});
