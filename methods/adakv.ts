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
import { flag, type Method, real } from "./define.ts";
import { adaptive } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";

/** Options that only {@linkcode adakv} has. */
export interface AdaptiveOptions extends VoteOptions {
  /** Share of the budget that every head gets, whatever its votes. */
  floor: number;
  /** Weigh each head's votes by how much of them its best ones hold, before heads compete. */
  concentrate: boolean;
}

/** Options of {@linkcode adakv}. */
export type AdaKvOptions = AdaptiveOptions & EvictionOptions;

/** The AdaKV method: SnapKV's score with adaptive budgets. */
export const adakv: Method<AdaKvOptions> = defineEviction<AdaptiveOptions>({
  name: "adakv",
  title: "AdaKV",
  summary: "SnapKV's votes, budgets dealt out to heads by need",
  paper: "https://arxiv.org/abs/2407.11550",
  differs:
    "rounding as in KVCache-Factory: a layer's sum may lie a few rows off its budget",
  options: {
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
  observe: ({ observationWindow }) => ({ windowQueries: observationWindow }),
  protect: ({ observationWindow }) => ({ last: observationWindow }),
  budgets: ({ floor, concentrate }) => adaptive(floor, concentrate),
  protectedAlone: true,
  score: (layer, options) => windowVotes(layer, options, "mean"),
});
