/**
 * Budgets that shrink linearly from the first layer to the last.
 *
 * @module
 */

/** What a pyramid of budgets depends on. */
export interface Pyramid {
  /** Rows per layer and head on average, without the window. */
  base: number;
  /** Candidate rows: prompt tokens before the window. */
  candidates: number;
  /** Layers. */
  layers: number;
  /** The last layer gets about `base / beta` rows. */
  beta: number;
  /** Spread what the integer steps leave over, so that the sum is `layers * base`. */
  exact: boolean;
}

/**
 * Rows per layer, without the window; all integer arithmetic. A prompt shorter than two budgets gets `base` everywhere.
 *
 * @returns `[layers]`, never more than `candidates`
 */
export function pyramidBudgets(
  { base, candidates, layers, beta, exact }: Pyramid,
  length: number,
): number[] {
  if (length < 2 * base || layers === 1) {
    return Array<number>(layers).fill(Math.min(base, candidates));
  }
  let least = Math.floor(base / beta);
  let most = 2 * base - least;
  if (most >= candidates) {
    most = candidates;
    least = 2 * base - most;
  }
  const step = Math.floor((most - least) / (layers - 1));
  const budgets = Array.from(
    { length: layers },
    (_, layer) => most - layer * step,
  );
  if (!exact) return budgets;
  // Integer steps give too much; take it back one row a layer, from the last layer up, as long as a row is left.
  let surplus = budgets.reduce((sum, n) => sum + n, 0) - layers * base;
  for (
    let layer = layers - 1;
    surplus > 0;
    layer = (layer + layers - 1) % layers
  ) {
    if (budgets[layer]! > 0) {
      budgets[layer]!--;
      surplus--;
    }
  }
  return budgets;
}
