/**
 * ThinK: keys stored without the channels that carry least, on top of SnapKV.
 *
 * After SnapKV's eviction each channel of a head is scored by the mean square of the last queries in it times the mean
 * square of the keys; the lowest `pruneRatio` of the channels are dropped from all keys but the `fullRows` newest ones.
 * Values keep all channels.
 *
 * Paper: https://arxiv.org/abs/2407.21018
 * Acts: once per layer, when prefill ends. Keys generated later keep all channels.
 * Differs from the paper: with `kv_head` granularity the query heads of one KV head are reduced (`groupReduce`).
 * `compat reference` keeps all channels in KVCache-Factory's "recent" rows: those last in score order, that is the window
 * and the lowest-ranked of the selected tokens. A prompt below the budget stays as it is, where KVCache-Factory fails; one
 * as long as the budget keeps all rows and loses channels, as there.
 *
 * @module
 */
import { choice, defineMethod, integer, type Method, real } from "./define.ts";
import { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";
import type { Scores, Selection } from "./types.ts";

/** Options of {@linkcode think}. */
export interface ThinkOptions extends VoteOptions {
  /** Tokens kept per layer and stored head, the observation window included. */
  budget: number;
  /** Share of the key channels that is not stored. */
  pruneRatio: number;
  /** Tokens whose keys keep all channels. */
  fullRows: number;
  /** Last prompt queries that score the channels. */
  scoringQueries: number;
  /** Which rows keep all channels. */
  compat: "paper" | "reference";
}

/**
 * The rows to prune as the reference has it, in a list of each head's rows after eviction: all but the last `full` of the
 * selected rows by score and then the window.
 */
function prunedByScore(
  votes: Scores,
  kept: Selection,
  { budget, observationWindow: window, fullRows }: ThinkOptions,
): Uint32Array[] {
  const selected = Math.min(budget - window, budget - fullRows);
  using best = votes.topK(selected);
  const lists = kept.read();
  return best.read().map((rows, head) => {
    const order = new Map(
      Array.from(lists[head] ?? [], (row, i) => [row, i] as const),
    );
    const early = Array.from(rows, (row) => order.get(row) ?? 0);
    const late = budget - fullRows - selected; // rows of the window
    return Uint32Array.from([
      ...early,
      ...Array.from({ length: late }, (_, i) => budget - window + i),
    ]);
  });
}

/** The ThinK method. */
export const think: Method<ThinkOptions> = defineMethod<ThinkOptions>({
  name: "think",
  title: "ThinK",
  summary: "SnapKV, keys without their weakest channels",
  paper: "https://arxiv.org/abs/2407.21018",
  kind: "prune",
  acts: "once per layer, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "with kv_head granularity a group's queries are reduced (groupReduce); compat reference counts the full rows in score order",
  options: {
    budget: integer(
      "Tokens kept per layer and stored head, the observation window included",
      { min: 1 },
    ),
    ...VOTE_OPTIONS,
    pruneRatio: real("Share of the key channels that is not stored", {
      min: 0,
      max: 0.99,
      default: 0.4,
      source: "ThinK, section 4; KVCache-Factory c97f9d7",
    }),
    fullRows: integer("Tokens whose keys keep all channels", {
      default: 32,
      source: "ThinK, section 4; KVCache-Factory c97f9d7",
    }),
    scoringQueries: integer("Last prompt queries that score the channels", {
      min: 1,
      default: 32,
      source: "KVCache-Factory c97f9d7",
    }),
    compat: choice("Full rows are the newest, or the last in score order", [
      "paper",
      "reference",
    ], { default: "paper" }),
  },
  create(options, { headDim }) {
    const { budget, observationWindow: window, fullRows, groupReduce } =
      options;
    // The paper's rows within fullRows keep all channels, and a small budget may lie within; the reference's list must not.
    const always = options.compat === "paper"
      ? window
      : Math.max(window, fullRows);
    if (budget <= always) {
      throw new RangeError(
        `Cannot run "think" as budget must exceed the ${always} tokens that are kept whole: budget is ${budget}`,
      );
    }
    const channels = headDim - Math.trunc(headDim * options.pruneRatio);
    return {
      observe: { windowQueries: Math.max(window, options.scoringQueries) },
      afterPrefill(layer) {
        const tokens = layer.length;
        if (tokens < budget) return;
        using votes = windowVotes(layer, options);
        using kept = votes.topK(budget - window);
        const rows = options.compat === "reference"
          ? prunedByScore(votes, kept, options)
          : undefined;
        layer.retain(kept, { last: window });
        if (channels === headDim) return;
        using carried = layer.channelScores({
          window: Math.min(options.scoringQueries, tokens),
          groupReduce,
        });
        using strong = carried.topK(channels);
        using pruned = rows && layer.select(rows);
        layer.pack(
          { once: true, residual: fullRows },
          pruned ? { rows: pruned, channels: strong } : { channels: strong },
        );
      },
      packs: true,
      maxRows: ({ length, storedHeads }) =>
        storedHeads * Math.min(length, budget),
    };
  },
});
