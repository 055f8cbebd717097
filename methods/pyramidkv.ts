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
import { choice, defineMethod, integer, type Method } from "./define.ts";
import { pyramidBudgets } from "./parts/pyramid.ts";
import {
  checkBudget,
  VOTE_OPTIONS,
  type VoteOptions,
  windowVotes,
} from "./parts/votes.ts";

/** Options of {@linkcode pyramidkv}. */
export interface PyramidKvOptions extends VoteOptions {
  /** Tokens kept per layer and stored head on average, the window included. */
  budget: number;
  /** The last layer keeps about the beta-th part of the base budget. */
  beta: number;
  /** Whether the integer remainder is kept (reference) or taken back (paper). */
  compat: "reference" | "paper";
}

/** The PyramidKV method. */
export const pyramidkv: Method<PyramidKvOptions> = defineMethod<
  PyramidKvOptions
>({
  name: "pyramidkv",
  title: "PyramidKV",
  summary: "SnapKV's votes, budgets shrinking from layer to layer",
  paper: "https://arxiv.org/abs/2406.02069",
  kind: "evict",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "compat reference keeps the remainder of the integer steps; compat paper takes it back",
  options: {
    budget: integer(
      "Mean tokens kept per layer and stored head, the observation window included",
      { min: 1 },
    ),
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
  create(options, { layers }) {
    const { budget, observationWindow: window, beta, compat } = options;
    checkBudget("pyramidkv", budget, "observationWindow", window);
    const kept = (length: number, layer: number): number => {
      if (length <= budget) return length;
      const pyramid = {
        base: budget - window,
        candidates: length - window,
        layers,
        beta,
        exact: compat === "paper",
      };
      return pyramidBudgets(pyramid, length)[layer]! + window;
    };
    return {
      observe: { windowQueries: window },
      afterPrefill(layer) {
        const rows = kept(layer.length, layer.layer);
        if (rows === layer.length) return;
        using votes = windowVotes(layer, options);
        using top = votes.topK(rows - window);
        layer.retain(top, { last: window });
      },
      maxRows: ({ length, layer, storedHeads }) =>
        storedHeads * kept(length, layer),
    };
  },
});
