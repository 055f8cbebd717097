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
  return Array.from(
    counts,
    (count) =>
      Math.min(
        candidates,
        roundHalfEven(Math.fround(Math.fround(count * (1 - floor)) + least)),
      ),
  );
}
