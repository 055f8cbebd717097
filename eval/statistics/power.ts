/**
 * How many examples are needed to see a difference.
 *
 * @module
 */
import { normalQuantile } from "./describe.ts";

/** What a comparison is asked to deliver. */
export interface PowerOptions {
  /** Standard deviation of the examples' paired differences, in the unit of the effect. */
  deviation: number;
  /** Chance of seeing the effect if it is there. Default: 0.8. */
  power?: number;
  /** Coverage; 1 - level is the chance of seeing an effect that is not there. Default: 0.95. */
  level?: number;
  /** Comparisons made at once; the level is shared among them. Default: 1. */
  comparisons?: number;
}

function standardErrors(options: PowerOptions): number {
  const { power = 0.8, level = 0.95, comparisons = 1, deviation } = options;
  if (!(deviation >= 0)) {
    throw new RangeError(
      `Cannot plan as deviation must be >= 0: deviation is ${deviation}`,
    );
  }
  if (!Number.isInteger(comparisons) || comparisons < 1) {
    throw new RangeError(
      `Cannot plan as comparisons must be an integer >= 1: comparisons is ${comparisons}`,
    );
  }
  return normalQuantile(1 - (1 - level) / comparisons / 2) +
    normalQuantile(power);
}

/**
 * Examples needed so that a true difference of `minEffect` is found with the given power, by the normal
 * approximation for paired differences.
 *
 * @param minEffect Smallest difference that matters, in the unit of the scores.
 * @throws RangeError for an effect that is not above 0 and for options out of range.
 */
export function requiredExamples(
  minEffect: number,
  options: PowerOptions,
): number {
  if (!(minEffect > 0)) {
    throw new RangeError(
      `Cannot plan as minEffect must be > 0: minEffect is ${minEffect}`,
    );
  }
  const ratio = standardErrors(options) * options.deviation / minEffect;
  return Math.max(2, Math.ceil(ratio ** 2));
}

/**
 * Smallest true difference that `examples` examples show with the given power; the inverse of
 * {@linkcode requiredExamples}.
 */
export function detectableEffect(
  examples: number,
  options: PowerOptions,
): number {
  if (!(examples >= 2)) {
    throw new RangeError(
      `Cannot plan as examples must be >= 2: examples is ${examples}`,
    );
  }
  return standardErrors(options) * options.deviation / Math.sqrt(examples);
}
