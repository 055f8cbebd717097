/**
 * Scissorhands: keep tokens that stayed important over the recent past.
 *
 * What was pivotal in the last `historyWindow` steps will be pivotal again. With `compat: "reference"` a token's importance
 * is the attention probability that those queries gave it; with `compat: "paper"` it is the number of those queries that
 * gave it at least the average, and when a head is full, `dropShare` of its rows go at once.
 *
 * Paper: https://arxiv.org/abs/2305.17118
 * Acts: once per layer, when prefill ends; with `schedule: "step"` also in every step.
 * Differs from the paper: by default, as in KVCache-Factory, plain attention sums and one choice after prefill; rows may be
 * drawn by importance instead of taken from the top. With `compat: "paper"` the prompt is read with full attention and then
 * cut to the budget, the counters are taken over the queries that are left in the window when a head is full, and the
 * query heads of one KV head are reduced (`groupReduce`).
 *
 * @module
 */
import { choice, integer, type Method, real } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce, QuerySet } from "./types.ts";

/** Options that only {@linkcode scissorhands} has. */
export interface PersistenceOptions {
  /** Most recent tokens always kept. */
  window: number;
  /** First tokens always kept. */
  sinks: number;
  /** Last queries that count; 0: all. */
  historyWindow: number;
  /** Factor on the importance in every step. */
  decay: number;
  /** The best rows, or rows drawn by importance. */
  selection: "topk" | "prob";
  /** Weights of a draw are `exp(importance / temperature)`; 0: all equal. */
  temperature: number;
  /** Seed of the draws. */
  seed: number;
  /** Share of a full head that is dropped at once. */
  dropShare: number;
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
  /** Attention sums, or the paper's counters. */
  compat: "reference" | "paper";
}

/** Options of {@linkcode scissorhands}. */
export type ScissorhandsOptions =
  & PersistenceOptions
  & EvictionOptions
  & BudgetOptions;

/** The paper drops half of a full head. */
const DROP_SHARE = 0.5;

const SOURCE = "KVCache-Factory c97f9d7, scissorhands";

function history({ historyWindow }: PersistenceOptions): QuerySet {
  return historyWindow === 0 ? "all" : { suffix: historyWindow };
}

/** The Scissorhands method. */
export const scissorhands: Method<ScissorhandsOptions> = defineEviction<
  PersistenceOptions
>({
  name: "scissorhands",
  title: "Scissorhands",
  summary: "Tokens that stayed important over the last queries",
  paper: "https://arxiv.org/abs/2305.17118",
  differs:
    "by default plain attention sums, as in KVCache-Factory; compat paper counts queries that give at least the average, after a prompt read with full attention",
  options: {
    window: integer("Most recent tokens always kept", {
      default: 0,
      source: SOURCE,
    }),
    sinks: integer("First tokens always kept", { default: 0, source: SOURCE }),
    historyWindow: integer("Last queries that count; 0: all", {
      max: 65536,
      default: 0,
      source: SOURCE,
    }),
    decay: real("Factor on the importance in every step (schedule step)", {
      min: 0,
      default: 1,
      source: SOURCE,
    }),
    selection: choice("The best rows, or rows drawn by importance", [
      "topk",
      "prob",
    ], { default: "topk", source: SOURCE }),
    temperature: real("Weights of a draw are exp(importance / temperature)", {
      min: 0,
      default: 1,
      source: SOURCE,
    }),
    seed: integer("Seed of the draws", { default: 0 }),
    dropShare: real("Share of a full head dropped at once (compat paper)", {
      min: 0,
      max: 0.9,
      default: DROP_SHARE,
      source: "paper, section 4.1",
    }),
    groupReduce: GROUP_REDUCE,
    compat: choice("Attention sums, or the paper's counters", [
      "reference",
      "paper",
    ], { default: "reference", source: SOURCE }),
  },
  check({ compat, historyWindow, schedule, decay, selection, dropShare }) {
    const refuse = (rule: string): never => {
      throw new RangeError(`Cannot run "scissorhands" as ${rule}`);
    };
    const drops = compat === "paper" && schedule === "step";
    if (dropShare !== DROP_SHARE && !drops) {
      refuse(
        `dropShare needs compat paper and schedule step: it is ${dropShare}`,
      );
    }
    if (compat === "paper") {
      if (historyWindow === 0) {
        refuse("compat paper needs a historyWindow: it is 0");
      }
      if (decay !== 1) refuse(`compat paper has no decay: it is ${decay}`);
      if (selection !== "topk") {
        refuse(`compat paper needs selection topk: it is ${selection}`);
      }
    } else if (decay !== 1 && schedule !== "step") {
      refuse(`decay needs schedule step: decay is ${decay}`);
    }
  },
  observe: (options) =>
    options.compat === "paper"
      ? { windowQueries: options.historyWindow }
      : { columnMasses: [history(options)] },
  protect: ({ sinks, window }) => ({ first: sinks, last: window }),
  protectedAlone: true,
  sampling: ({ selection, temperature, seed }) => ({
    rows: selection === "prob" ? Infinity : 0,
    temperature,
    seed,
  }),
  score: (layer, options) =>
    options.compat === "paper"
      ? layer.observationScores({
        window: Math.min(options.historyWindow, layer.length),
        groupReduce: options.groupReduce,
        over: "hits",
        allRows: true,
      })
      : layer.columnMass(history(options), options.groupReduce),
  decode(step, options) {
    const { groupReduce, decay, selection, temperature, seed } = options;
    if (options.compat === "paper") {
      const window = options.historyWindow;
      return {
        statistic: step.recentHits({ window, groupReduce }),
        dropShare: options.dropShare,
      };
    }
    return {
      statistic: step.mass({ from: history(options), decay, groupReduce }),
      ...(selection === "prob" ? { draw: { temperature, seed } } : {}),
    };
  },
});
