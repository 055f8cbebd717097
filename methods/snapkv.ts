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
import type { Method } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";

/** Options of {@linkcode snapkv}. */
export type SnapKvOptions = VoteOptions & EvictionOptions & BudgetOptions;

/** The SnapKV method. */
export const snapkv: Method<SnapKvOptions> = defineEviction<VoteOptions>({
  name: "snapkv",
  title: "SnapKV",
  summary: "Tokens that the last prompt queries attend to, pooled",
  paper: "https://arxiv.org/abs/2404.14469",
  differs:
    "with kv_head granularity the query heads of one KV head vote together (groupReduce)",
  options: VOTE_OPTIONS,
  observe: ({ observationWindow }) => ({ windowQueries: observationWindow }),
  protect: ({ observationWindow }) => ({ last: observationWindow }),
  score: windowVotes,
});
