/**
 * What becomes of rows that are dropped: nothing, or they are merged into kept ones. A row goes to the kept row of its
 * head whose key has the highest cosine with its own.
 *
 * Differs from the papers (LOOK-M, https://arxiv.org/abs/2406.18139, for `pivot`; KVMerger,
 * https://arxiv.org/abs/2407.08454, for `weighted`): nearest neighbours over all tokens as in KVCache-Factory, no
 * restriction to image tokens and no merge sets of consecutive tokens.
 *
 * @module
 */
import { choice } from "../define.ts";
import type { OptionSpec } from "../types.ts";

/** How dropped rows are merged. */
export type Merge = "none" | "pivot" | "weighted";

/** The primitive behind each way. */
export const MERGE_KIND = {
  none: undefined,
  pivot: "midpoint",
  weighted: "similarity",
} as const;

/** The option of every eviction method that has nothing else to do with dropped rows. */
export const MERGE_OPTION: OptionSpec<Merge> = choice(
  "What becomes of dropped rows: nothing, or merged into the most similar kept row",
  ["none", "pivot", "weighted"],
  { default: "none", source: "KVCache-Factory c97f9d7, merge" },
);
