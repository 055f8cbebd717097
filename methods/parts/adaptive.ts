/**
 * Budgets that the heads of a layer compete for.
 *
 * @module
 */
import { roundHalfEven } from "./round.ts";

/**
 * Rows per head, without the protected ones.
 * @param counts how many of the layer's best scores are each head's
 * @param base mean rows per head
 * @param floor share that every head gets
 * @param candidates rows there are
 */
export function adaptiveBudgets(
  counts: ArrayLike<number>,
  base: number,
  floor: number,
  candidates: number,
): number[] {
  const least = Math.trunc(base * floor);
  // Single precision throughout, factors included: a product halfway between two integers may hang on it.
  const share = Math.fround(1 - floor);
  return Array.from(counts, (count) => {
    const own = Math.fround(Math.fround(count) * share);
    return Math.min(candidates, roundHalfEven(Math.fround(own + least)));
  });
}
