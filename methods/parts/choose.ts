/**
 * Choosing rows by score: the best ones, and where a method wants it some at random.
 *
 * @module
 */
import type { LayerContext, Scores, Selection } from "../types.ts";

/** A random part of a choice: rows drawn without replacement, likelier with higher scores. */
export interface RandomPart {
  /** Rows per head that are drawn; fewer where fewer are chosen at all. */
  rows: number;
  /** Weights are `exp(score / temperature)`; 0: all equal. */
  temperature: number;
  /** Seed of the draws; they depend on layer, head and row besides. */
  seed: number;
}

/** Chooses `counts[h]` rows of head `h`. */
export function choose(
  layer: LayerContext,
  scores: Scores,
  counts: readonly number[],
  random: RandomPart = { rows: 0, temperature: 1, seed: 0 },
): Selection {
  const drawn = counts.map((n) => Math.min(n, random.rows));
  const best = counts.map((n, head) => n - drawn[head]!);
  const top = topK(scores, best);
  if (drawn.every((n) => n === 0)) return top;
  using _top = top;
  using keys = drawKeys(layer, scores, random);
  // The best rows come first whatever their keys; rows that may not be chosen at all stay last.
  using all = keys.fillSelected(top, Infinity);
  return topK(all, counts);
}

function topK(scores: Scores, counts: readonly number[]): Selection {
  const same = counts.every((n) => n === counts[0]);
  return scores.topK(same ? counts[0]! : counts);
}

/**
 * `score / temperature + Gumbel noise`: the highest keys are a draw without replacement with weights
 * `exp(score / temperature)` (Efraimidis and Spirakis 2006, in logarithms). Rows of -Infinity stay last.
 */
function drawKeys(
  layer: LayerContext,
  scores: Scores,
  { temperature, seed }: RandomPart,
): Scores {
  using uniform = layer.uniform(seed, scores.rows);
  // Just below 1, so that no key is infinite.
  using below = uniform.affine(1 - 2 ** -24, 0);
  using log = below.log();
  using exponential = log.affine(-1, 0);
  using logExponential = exponential.log();
  using noise = logExponential.affine(-1, 0);
  // 0 times -Infinity is NaN, which counts as the lowest, too.
  using weights = scores.affine(temperature > 0 ? 1 / temperature : 0, 0);
  return noise.add(weights);
}
