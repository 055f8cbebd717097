/**
 * Rows per layer and per head, in integers: PyramidKV's schedule, AdaKV's division, HeadKV's table.
 *
 * @module
 */
import { NEAR } from "./choice.ts";
import { roundHalfEven, type Row } from "./layer.ts";

/** PyramidKV: rows beside the window that one layer keeps; undefined where a prompt stays as it is. */
export function pyramidRows(
  { tokens, budget, window, beta, layer, layers }: {
    tokens: number;
    budget: number;
    window: number;
    beta: number;
    layer: number;
    layers: number;
  },
): number | undefined {
  if (tokens < budget) return undefined;
  const base = budget - window;
  if (tokens < 2 * base || layers === 1) return base;
  let least = Math.floor(base / beta);
  let most = 2 * base - least;
  if (most >= tokens - window) {
    most = tokens - window;
    least = 2 * base - most;
  }
  return most - layer * Math.floor((most - least) / (layers - 1));
}

/** AdaKV: the share of a head's votes that its best `count` hold. */
export function concentration(scores: Row, count: number): number {
  const best = scores.toSorted((a, b) => b - a);
  const sum = (row: Row) => row.reduce((a, b) => a + b, 0);
  return sum(best.subarray(0, count)) / sum(best);
}

/**
 * AdaKV: rows beside the window of each head, `[least, most]`: scores near the common cut may count for either head.
 * @param base mean rows per head
 * @param floor share of the base that every head gets
 */
export function adaptiveRows(
  scores: Row[],
  base: number,
  floor: number,
): [number, number][] {
  const all = scores.flatMap((row) => [...row]).sort((a, b) => b - a);
  const total = scores.length * base;
  const cut = total === 0 ? Infinity : all[total - 1]!;
  const room = NEAR * Math.abs(cut);
  const above = scores.map((row) => row.filter((s) => s > cut + room).length);
  const near = scores.map((row) => row.filter((s) => s >= cut - room).length);
  const sum = (counts: number[]) => counts.reduce((a, b) => a + b, 0);
  const fixed = Math.trunc(base * floor);
  const rows = (count: number): number => {
    const share = Math.fround(Math.fround(count) * Math.fround(1 - floor));
    return roundHalfEven(Math.fround(share + fixed));
  };
  return scores.map((row, h) => {
    const others = (counts: number[]) => sum(counts) - counts[h]!;
    const least = Math.max(above[h]!, total - others(near));
    const most = Math.min(near[h]!, total - others(above));
    const clamp = (count: number) => Math.min(rows(count), row.length);
    return [clamp(least), clamp(most)];
  });
}

/** HeadKV: the rows of one layer's stored heads; those of a group are averaged in single precision. */
export function tableRows(
  table: number[],
  layer: number,
  queryHeads: number,
  storedHeads: number,
): number[] {
  const size = queryHeads / storedHeads;
  const own = table.slice(layer * queryHeads, (layer + 1) * queryHeads);
  return Array.from({ length: storedHeads }, (_, h) => {
    const group = own.slice(h * size, (h + 1) * size);
    return roundHalfEven(
      Math.fround(group.reduce((a, b) => a + b, 0) / size),
    );
  });
}

/** Floor division of floats as Python has it: through the exact remainder. */
function floorDivide(a: number, b: number): number {
  const quotient = (a - a % b) / b;
  const low = Math.floor(quotient);
  return quotient - low > 0.5 ? low + 1 : low;
}

/** HeadKV: rows of every layer and query head out of lists of head scores, in the file's order. */
export function scoreTable(
  lists: number[][],
  budget: number,
  beta: number,
): number[] {
  const means = lists.map((list) =>
    list.reduce((a, b) => a + b, 0) / list.length
  );
  const total = means.reduce((a, b) => a + b, 0);
  const given = floorDivide(budget, beta);
  const pool = given * lists.length;
  return means.map((mean) =>
    roundHalfEven(mean / total * pool + (budget - given))
  );
}
