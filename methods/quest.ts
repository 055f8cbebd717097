/**
 * Quest: keep everything, and let each query read only the pages that it may need.
 *
 * Rows are grouped into pages, and each page knows the highest and lowest key in every channel. From them follows an upper
 * bound of the query's products with the page's keys; in every step each stored head attends to the pages with the highest
 * bounds. Nothing is evicted, so nothing is lost for later queries, and no memory is saved but traffic, unless rows are
 * packed as well (`quant`): bounds of packed rows are those of the rows when the choice began, or came.
 *
 * Paper: https://arxiv.org/abs/2406.10774
 * Acts: in every decode step, before attention; the prompt is read with full attention.
 * Differs from the paper: with `kv_head` granularity the query heads of one KV head choose together (`groupReduce`). With
 * `compat: "reference"` a head attends to exactly `budget` tokens as KVCache-Factory's selector chooses them: the chosen
 * pages in order of position, cut at the end, so that a good late page may lose tokens.
 *
 * @module
 */
import { choice, defineMethod, integer, type Method } from "./define.ts";
import { QUANT_OPTION, quantiserOf } from "./parts/quant.ts";
import { GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce } from "./types.ts";

/** Options of {@linkcode quest}. */
export interface QuestOptions {
  /** Tokens attended to per layer, stored head and query. */
  budget: number;
  /** Tokens of one page. */
  pageSize: number;
  /** Most recent tokens that are always attended to, out of the budget. */
  window: number;
  /** First layers that attend to everything. */
  denseLayers: number;
  /** Reduction of page bounds over the query heads of one KV head. */
  groupReduce: GroupReduce;
  /** How rows are stored: `none`, or a packed format. */
  quant: string;
  /** Whole pages, or exactly `budget` tokens as in KVCache-Factory. */
  compat: "paper" | "reference";
}

/** The Quest method. */
export const quest: Method<QuestOptions> = defineMethod<QuestOptions>({
  name: "quest",
  title: "Quest",
  summary: "Everything kept; each query reads the pages that may match it best",
  paper: "https://arxiv.org/abs/2406.10774",
  kind: "retrieve",
  acts: "in every decode step, before attention",
  granularities: ["kv_head", "query_head"],
  differs:
    "with kv_head granularity the query heads of one KV head choose together (groupReduce); compat reference cuts the chosen pages to exactly budget tokens",
  options: {
    budget: integer("Tokens attended to per layer, stored head and query", {
      min: 1,
    }),
    pageSize: integer("Tokens of one page", {
      min: 1,
      max: 65536,
      default: 16,
      source: "paper, section 4.1",
    }),
    window: integer("Most recent tokens always attended to, out of budget", {
      default: 0,
      source: "paper, section 3.3; KVCache-Factory c97f9d7, quest",
    }),
    denseLayers: integer("First layers that attend to everything", {
      default: 2,
      source: "paper, section 3.3",
    }),
    groupReduce: GROUP_REDUCE,
    quant: QUANT_OPTION,
    compat: choice("Whole pages, or exactly budget tokens", [
      "paper",
      "reference",
    ], { default: "paper" }),
  },
  create(options, shape) {
    const { budget, pageSize, window, denseLayers, groupReduce, compat } =
      options;
    const quantiser = quantiserOf("quest", options.quant, shape);
    return {
      ...(quantiser === undefined
        ? {}
        : { afterPrefill: (layer) => quantiser.encode(layer) }),
      decode(step) {
        if (step.layer < denseLayers) return;
        step.attendByPages({
          pageRows: pageSize,
          budget,
          recent: window,
          groupReduce,
          exact: compat === "reference",
        });
      },
    };
  },
});
