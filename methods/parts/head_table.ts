/**
 * Budgets from a table over layers and query heads: the table is a file, either the head scores that HeadKV's authors
 * published or rows per head as they are.
 *
 * @module
 */
import { z } from "zod";
import { readOptionFile } from "../_files.ts";
import type { ModelShape } from "../types.ts";
import { floorDivide, roundHalfEven } from "./round.ts";

/** What a head file holds: one number per layer and query head, layer by layer. */
export interface HeadTable {
  /** Importance of each head, or rows to keep. */
  kind: "scores" | "rows";
  /** `[layers * queryHeads]`. */
  values: number[];
}

const SCORES = z.record(z.string(), z.array(z.number().min(0)).min(1));
const ROWS = z.object({ rows: z.array(z.array(z.int().min(0)).min(1)).min(1) });

/**
 * Reads the text of a head file. `{"0-0": [scores ...], ...}` is HeadKV's form: the order of the entries counts, not
 * their names, and only the first line is read. `{"rows": [[...], ...]}` gives rows per layer and query head.
 * @throws {SyntaxError} when it is neither; the message names the file
 */
export function parseHeadFile(path: string, text: string): HeadTable {
  const [line = ""] = text.split("\n", 1);
  const value = tryJson(line) ?? tryJson(text);
  const rows = ROWS.safeParse(value);
  if (rows.success) return { kind: "rows", values: rows.data.rows.flat() };
  const scores = SCORES.safeParse(value);
  if (!scores.success) {
    throw new SyntaxError(
      `Cannot read head file "${path}" as it must be {"layer-head": [scores]} or {"rows": [[rows per head] per layer]}: ${
        value === undefined ? "it is no JSON" : scores.error.issues[0]?.message
      }`,
    );
  }
  const values = Object.values(scores.data).map((list) =>
    list.reduce((sum, x) => sum + x, 0) / list.length
  );
  return { kind: "scores", values };
}

function tryJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Rows per head from importance, in double precision: each head gets the same small share of the budget, and the rest of
 * all budgets together is dealt out in proportion to importance (HeadKV, section 3.3; rounding as in KVCache-Factory).
 * @param scores importance of each head
 * @param budget mean rows per head
 * @param beta the larger, the larger the share that every head gets: `budget - budget // beta`
 */
export function headBudgets(
  scores: readonly number[],
  budget: number,
  beta: number,
): number[] {
  const total = scores.reduce((sum, x) => sum + x, 0);
  const dealt = floorDivide(budget, beta);
  const pool = dealt * scores.length;
  return scores.map((score) =>
    roundHalfEven(
      (total > 0 ? score / total : 1 / scores.length) * pool +
        (budget - dealt),
    )
  );
}

/** Reads a head file for a model and turns it into rows per layer and query head. */
export function loadHeadBudgets(
  method: string,
  path: string,
  budget: number,
  beta: number,
  { layers, queryHeads }: Pick<ModelShape, "layers" | "queryHeads">,
): number[] {
  const { kind, values } = parseHeadFile(path, readOptionFile(method, path));
  if (values.length !== layers * queryHeads) {
    throw new RangeError(
      `Cannot run "${method}" as head file "${path}" must have ${layers} x ${queryHeads} heads: it has ${values.length}`,
    );
  }
  return kind === "rows" ? values : headBudgets(values, budget, beta);
}

/**
 * Rows of the stored heads of one layer, each at most `candidates`. A KV head gets the mean of its query heads, in
 * float32, rounded half to even.
 */
export function tableBudgets(
  budgets: readonly number[],
  { layer, queryHeads, storedHeads, candidates }: {
    layer: number;
    queryHeads: number;
    storedHeads: number;
    candidates: number;
  },
): number[] {
  const own = budgets.slice(layer * queryHeads, (layer + 1) * queryHeads);
  const group = queryHeads / storedHeads;
  return Array.from({ length: storedHeads }, (_, head) => {
    const sum = own.slice(head * group, (head + 1) * group)
      .reduce((sum, n) => sum + n, 0);
    return Math.min(candidates, roundHalfEven(Math.fround(sum / group)));
  });
}
