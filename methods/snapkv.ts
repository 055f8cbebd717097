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
import { defineMethod, integer, type Method } from "./define.ts";
import {
  checkBudget,
  VOTE_OPTIONS,
  type VoteOptions,
  windowVotes,
} from "./parts/votes.ts";

/** Options of {@linkcode snapkv}. */
export interface SnapKvOptions extends VoteOptions {
  /** Tokens kept per layer and stored head, the window included. */
  budget: number;
}

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
    ...VOTE_OPTIONS,
  },
  create(options) {
    const { budget, observationWindow: window } = options;
    checkBudget("snapkv", budget, "observationWindow", window);
    return {
      observe: { windowQueries: window },
      afterPrefill(layer) {
        if (layer.length <= budget) return;
        using votes = windowVotes(layer, options);
        using kept = votes.topK(budget - window);
        layer.retain(kept, { last: window });
      },
      maxRows: ({ length, storedHeads }) =>
        storedHeads * Math.min(length, budget),
    };
  },
});
