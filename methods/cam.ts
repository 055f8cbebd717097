/**
 * CAM: evict by the window's attention, and merge the values of evicted tokens into those that follow.
 *
 * A token that will be dropped passes its value on to the next `window` tokens, each getting an equal share, with a
 * probability that is its attention over the highest attention of the receivers: so the output of attention changes
 * least. Keys stay as they are.
 *
 * Paper: https://openreview.net/forum?id=LCTmppB165 (CaM, ICML 2024)
 * Acts: once per layer. `compat reference` (default) merges before the layer's attention runs, so that the prompt's own
 * hidden states change, and merges every token between the first tenth and the window, whether it is dropped later or
 * not, as KVCache-Factory does. `compat paper` merges after attention and only what is dropped.
 * Differs from the paper: the probability compares with the highest receiver, not their mean; one pass after prefill.
 *
 * @module
 */
import { choice, integer, type Method, real } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce, LayerContext, Selection } from "./types.ts";

/** Options that only {@linkcode cam} has. */
export interface ValueMergeOptions {
  /** Most recent tokens, whose queries vote; always kept. */
  window: number;
  /** Share of the prompt, from its start, that passes nothing on and that receivers are compared with. */
  startRatio: number;
  /** Merge at random, or whenever the probability is above one half. */
  draws: "random" | "threshold";
  /** Seed of the draws. */
  seed: number;
  /** When and what is merged. */
  compat: "reference" | "paper";
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
}

/** Options of {@linkcode cam}. */
export type CamOptions = ValueMergeOptions & EvictionOptions & BudgetOptions;

/** Passes values on; rows of `spared` keep theirs. */
function passOn(
  layer: LayerContext,
  { window, startRatio, draws, seed, groupReduce }: ValueMergeOptions,
  spared?: Selection,
): void {
  const first = Math.ceil(startRatio * layer.length);
  using attention = layer.observationScores({
    window,
    groupReduce,
    over: "mean",
    allRows: true,
    reduceFirst: true,
  });
  using probability = attention.relative(first, window);
  // Draws in [0, 1): below a probability of 0 there is none, below 1 all are.
  using uniform = layer.uniform(seed);
  using draw = draws === "random"
    ? uniform.affine(1, -(2 ** -24))
    : uniform.affine(0, 0.5);
  using passed = draw.less(probability);
  using shares = spared === undefined
    ? passed.affine(1, 0)
    : passed.fillSelected(spared, 0);
  layer.spreadValues(shares, { first, span: window });
}

/** The CAM method. */
export const cam: Method<CamOptions> = defineEviction<ValueMergeOptions>({
  name: "cam",
  title: "CAM",
  summary: "Tokens that the window attends to; values of others merged onward",
  paper: "https://openreview.net/forum?id=LCTmppB165",
  acts:
    "once per layer: values before its attention (reference) or all when prefill ends (paper)",
  differs:
    "compat reference merges before attention and whatever is dropped later, compat paper after it and only what is dropped",
  options: {
    window: integer("Most recent tokens, whose queries vote; always kept", {
      min: 1,
      default: 8,
      source: "KVCache-Factory c97f9d7, run_longbench.py",
    }),
    startRatio: real(
      "Share of the prompt, from its start, that passes nothing on",
      {
        min: 0,
        max: 1,
        default: 0.1,
        source: "KVCache-Factory c97f9d7, start_budget_ratio",
      },
    ),
    draws: choice("Merge at random, or where the probability is above 0.5", [
      "random",
      "threshold",
    ], { default: "random", source: "the paper, section 4" }),
    seed: integer("Seed of the draws", { default: 0 }),
    compat: choice("When and what is merged", ["reference", "paper"], {
      default: "reference",
      source: "numbers comparable with KVCache-Factory c97f9d7",
    }),
    groupReduce: GROUP_REDUCE,
  },
  merges: false,
  observe: ({ window }) => ({ windowQueries: window }),
  protect: ({ window }) => ({ last: window }),
  score: (layer, { window, groupReduce }) =>
    layer.observationScores({ window, groupReduce, reduceFirst: true }),
  altersPrefill: ({ compat }) => compat === "reference",
  beforeAttention: (layer, options) => passOn(layer, options),
  beforeEviction(layer, kept, options) {
    if (options.compat === "paper") passOn(layer, options, kept);
  },
});
