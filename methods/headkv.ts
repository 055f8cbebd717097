/**
 * HeadKV: SnapKV's votes, with a budget for each head from a table of how much heads retrieve and reason.
 *
 * The table is made once for a model, offline: heads that matter for finding and combining facts keep many rows, all
 * others a small share. Both published tables can be read as they are.
 *
 * Paper: https://arxiv.org/abs/2410.19258
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: nothing known of the formula. `compat reference` (default) gives the budget to the table alone
 * and the window in addition, as KVCache-Factory does; with `compat product` the budget includes the window, as for all
 * other methods. What a head cannot use, as the prompt is too short, is lost in both.
 *
 * @module
 */
import { choice, file, integers, type Method, real } from "./define.ts";
import { type Budgets, table } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { loadHeadBudgets } from "./parts/head_table.ts";
import { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";
import type { ModelShape } from "./types.ts";

/** Options that only {@linkcode headkv} has. */
export interface HeadTableOptions extends VoteOptions {
  /** Head scores, or rows per head: see `parseHeadFile`. */
  headFile: string;
  /** Rows per query head, layer by layer, in place of a file. */
  headRows: number[];
  /** The larger, the more each head gets whatever its score. */
  headBeta: number;
  /** Whether the window comes on top of the budget (reference) or out of it (product). */
  compat: "reference" | "product";
}

/** Options of {@linkcode headkv}. */
export type HeadKvOptions = HeadTableOptions & EvictionOptions;

/** The HeadKV method: SnapKV's score with budgets from a table. */
export const headkv: Method<HeadKvOptions> = defineEviction<HeadTableOptions>({
  name: "headkv",
  title: "HeadKV",
  summary: "SnapKV's votes, budgets from a table of head scores",
  paper: "https://arxiv.org/abs/2410.19258",
  differs:
    "compat reference keeps the window on top of the budget, compat product within it",
  options: {
    ...VOTE_OPTIONS,
    headFile: file("JSON file of head scores or of rows per head"),
    headRows: integers("Rows per query head, layer by layer, without a file", {
      default: [],
    }),
    headBeta: real("The larger, the more each head gets whatever its score", {
      min: 1,
      default: 1.01,
      source: "KVCache-Factory c97f9d7, head_beta",
    }),
    compat: choice("The window on top of the budget, or within it", [
      "reference",
      "product",
    ], {
      default: "reference",
      source: "numbers comparable with KVCache-Factory c97f9d7",
    }),
  },
  exampleOptions: ({ layers, queryHeads }) => ({
    headRows: Array.from({ length: layers * queryHeads }, (_, i) => 3 * i % 50),
  }),
  observe: ({ observationWindow }) => ({ windowQueries: observationWindow }),
  protect: ({ observationWindow }) => ({ last: observationWindow }),
  budgets: (options, shape) => budgetsOf(options, shape),
  score: (layer, options) => windowVotes(layer, options, "mean"),
});

function budgetsOf(
  { budget, headFile, headRows, headBeta, compat, observationWindow }:
    & HeadTableOptions
    & EvictionOptions,
  shape: ModelShape,
): Budgets {
  if (headRows.length === 0) {
    const rows = compat === "reference" ? budget : budget - observationWindow;
    return table(loadHeadBudgets("headkv", headFile, rows, headBeta, shape));
  }
  if (headFile !== "") {
    throw new RangeError(
      `Cannot run "headkv" as either headFile or headRows must be given: both are`,
    );
  }
  if (headRows.length !== shape.layers * shape.queryHeads) {
    throw new RangeError(
      `Cannot run "headkv" as headRows must have ${shape.layers} x ${shape.queryHeads} numbers: it has ${headRows.length}`,
    );
  }
  return table(headRows);
}
