/**
 * PyramidKV: SnapKV's votes with budgets that shrink from the first layer to the last.
 *
 * Lower layers spread their attention, upper ones gather it: so the same total is dealt out as a pyramid, linearly from
 * the first layer to the last, around the mean of `budget - observationWindow`.
 *
 * Paper: https://arxiv.org/abs/2406.02069
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: `compat reference` (default) keeps the remainder that KVCache-Factory's integer steps leave
 * over, up to (layers - 2) / 2 rows per layer more than the budget on average; `compat paper` takes it back, so that the
 * budgets sum to layers times the budget. Votes as in SnapKV.
 *
 * @module
 */
import { choice, integer, type Method } from "./define.ts";
import { pyramid } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";

/** Options that only {@linkcode pyramidkv} has. */
export interface PyramidOptions extends VoteOptions {
  /** The last layer keeps about the beta-th part of the base budget. */
  beta: number;
  /** Whether the integer remainder is kept (reference) or taken back (paper). */
  compat: "reference" | "paper";
}

/** Options of {@linkcode pyramidkv}. */
export type PyramidKvOptions = PyramidOptions & EvictionOptions;

/** The PyramidKV method: SnapKV's score with pyramid budgets. */
export const pyramidkv: Method<PyramidKvOptions> = defineEviction<
  PyramidOptions
>({
  name: "pyramidkv",
  title: "PyramidKV",
  summary: "SnapKV's votes, budgets shrinking from layer to layer",
  paper: "https://arxiv.org/abs/2406.02069",
  differs:
    "compat reference keeps the remainder of the integer steps; compat paper takes it back",
  options: {
    ...VOTE_OPTIONS,
    beta: integer(
      "The last layer keeps about the beta-th part of the base budget",
      {
        min: 1,
        default: 20,
        source: "the paper and KVCache-Factory c97f9d7",
      },
    ),
    compat: choice("The reference's integer budgets or the paper's exact sum", [
      "reference",
      "paper",
    ], {
      default: "reference",
      source: "numbers comparable with KVCache-Factory c97f9d7",
    }),
  },
  observe: ({ observationWindow }) => ({ windowQueries: observationWindow }),
  protect: ({ observationWindow }) => ({ last: observationWindow }),
  budgets: ({ beta, compat }) => pyramid(beta, compat === "paper"),
  score: windowVotes,
});
