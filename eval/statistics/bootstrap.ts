/**
 * How sure a mean and a difference of means are, without assuming a distribution.
 *
 * Intervals are percentile bootstrap intervals; examples are drawn again within their group (data set), so the mean of
 * several data sets keeps its composition. The p-value of a difference is that of the paired randomisation test:
 * under the hypothesis that two configurations are equally good, the sign of each example's difference is a coin.
 * An interval of identical scores has no width; that says the sample holds no variation, not that the mean is certain.
 *
 * @module
 */
import { seededBits } from "./_random.ts";
import { mean, normalCdf, standardError } from "./describe.ts";

/** How intervals and p-values are computed. */
export interface BootstrapOptions {
  /** Draws. Default: 5000. */
  resamples?: number;
  /** Coverage of intervals. Default: 0.95. */
  level?: number;
  /** Seed of the draws. Default: 1. */
  seed?: number;
}

/** A mean with its uncertainty. */
export interface Estimate {
  /** Examples. */
  n: number;
  /** The mean; over groups, the mean of their means. */
  mean: number;
  /** Its standard error; NaN when a group has a single example. */
  standardError: number;
  /** Lower end of the interval. */
  low: number;
  /** Upper end of the interval. */
  high: number;
}

/** A difference of means over the same examples. */
export interface PairedEstimate extends Estimate {
  /** Two-sided p-value of "no difference". */
  pValue: number;
}

/** Scores of one configuration by example. */
export type ScoresByExample = ReadonlyMap<string, number>;

function resolve(options: BootstrapOptions): Required<BootstrapOptions> {
  const { resamples = 5000, level = 0.95, seed = 1 } = options;
  if (!Number.isInteger(resamples) || resamples < 1) {
    throw new RangeError(
      `Cannot bootstrap as resamples must be an integer >= 1: resamples is ${resamples}`,
    );
  }
  if (!(level > 0 && level < 1)) {
    throw new RangeError(
      `Cannot bootstrap as 0 < level < 1 must hold: level is ${level}`,
    );
  }
  if (!Number.isInteger(seed)) {
    throw new RangeError(
      `Cannot bootstrap as seed must be an integer: seed is ${seed}`,
    );
  }
  return { resamples, level, seed };
}

/** Value below which the share `p` of sorted values lies, interpolated linearly. */
function quantile(sorted: Float64Array, p: number): number {
  const place = p * (sorted.length - 1);
  const below = Math.floor(place);
  const low = sorted[below] ?? NaN;
  const high = sorted[Math.min(below + 1, sorted.length - 1)] ?? NaN;
  return low === high ? low : low + (place - below) * (high - low);
}

/**
 * Mean of groups' means with its bootstrap interval.
 *
 * @param groups Scores of each data set; for a single one, a list of one list.
 * @throws RangeError without groups, for an empty group and for options out of range.
 *
 * @example
 * ```ts
 * import { assert, assertEquals } from "@std/assert";
 * import { bootstrapMean } from "./mod.ts";
 *
 * const { mean, low, high } = bootstrapMean([[0, 1, 1, 1, 0, 1, 1, 1]]);
 * assertEquals(mean, 0.75);
 * assert(low < 0.75 && 0.75 < high);
 * ```
 */
export function bootstrapMean(
  groups: readonly (readonly number[])[],
  options: BootstrapOptions = {},
): Estimate {
  const { resamples, level, seed } = resolve(options);
  const bits = seededBits(seed);
  const data = groups.map((group) => Float64Array.from(group));
  const means = new Float64Array(resamples);
  for (let r = 0; r < resamples; r++) {
    let total = 0;
    for (const group of data) {
      const n = group.length;
      const scale = n / 0x1_0000_0000;
      let sum = 0;
      for (let i = 0; i < n; i++) sum += group[Math.floor(bits() * scale)] ?? 0;
      total += sum / n;
    }
    means[r] = total / data.length;
  }
  means.sort();
  const variance = groups.reduce((sum, g) => sum + standardError(g) ** 2, 0);
  return {
    n: groups.reduce((sum, group) => sum + group.length, 0),
    mean: mean(groups.map(mean)),
    standardError: Math.sqrt(variance) / groups.length,
    low: quantile(means, (1 - level) / 2),
    high: quantile(means, (1 + level) / 2),
  };
}

/** Below this many examples that differ, all assignments of signs are tried. */
const EXACT = 14;

/** Fewer extreme draws than this leave the tail to the normal approximation. */
const FEW = 10;

/**
 * Two-sided p-value of the randomisation test for a weighted sum of paired differences.
 *
 * Up to 14 differences every assignment of signs is counted. Beyond that, signs are drawn; where the draws hardly ever
 * reach the observed sum, the normal tail with the same variance is taken, which is what a correction for many
 * comparisons needs and which errs to the larger p-value at the very end.
 */
function signFlip(
  weighted: number[],
  resamples: number,
  seed: number,
): number {
  const terms = weighted.filter((x) => x !== 0).map(Math.abs);
  const n = terms.length;
  if (n === 0) return 1;
  const scale = terms.reduce((sum, x) => sum + x, 0);
  const observed = Math.abs(weighted.reduce((sum, x) => sum + x, 0)) -
    1e-12 * scale;
  if (n <= EXACT) {
    let extreme = 0;
    for (let signs = 0; signs < 2 ** n; signs++) {
      let sum = 0;
      for (const [i, x] of terms.entries()) sum += signs >> i & 1 ? x : -x;
      if (Math.abs(sum) >= observed) extreme++;
    }
    return extreme / 2 ** n;
  }
  const bits = seededBits(seed ^ 0x5bd1e995);
  const values = Float64Array.from(terms);
  let extreme = 0;
  for (let r = 0; r < resamples; r++) {
    let sum = 0;
    let word = 0;
    for (let i = 0; i < n; i++) {
      if (i % 32 === 0) word = bits();
      const x = values[i] ?? 0;
      sum += word & 1 ? x : -x;
      word >>>= 1;
    }
    if (Math.abs(sum) >= observed) extreme++;
  }
  const drawn = (extreme + 1) / (resamples + 1);
  if (extreme >= FEW) return drawn;
  const deviation = Math.sqrt(terms.reduce((sum, x) => sum + x * x, 0));
  return Math.min(drawn, 2 * normalCdf(-Math.max(observed, 0) / deviation));
}

/** Options of {@linkcode pairedDifference}. */
export interface PairedOptions extends BootstrapOptions {
  /** Group (data set) of an example; groups weigh the same. Default: one group. */
  group?: (example: string) => string;
}

/**
 * Mean of `a` minus mean of `b` over the same examples, with interval and p-value.
 *
 * @param a Scores of one configuration.
 * @param b Scores of the other.
 * @param options Draws, level, seed, groups.
 * @throws RangeError when an example has a score on one side only, or there is none. A gap is not a score of 0.
 */
export function pairedDifference(
  a: ScoresByExample,
  b: ScoresByExample,
  options: PairedOptions = {},
): PairedEstimate {
  const { resamples, seed } = resolve(options);
  for (const [one, other] of [[a, b], [b, a]] as const) {
    for (const id of one.keys()) {
      if (other.has(id)) continue;
      throw new RangeError(
        `Cannot compare as both sides must hold the same examples: "${id}" is on one side only (${a.size} and ${b.size} examples)`,
      );
    }
  }
  const groupOf = options.group ?? (() => "");
  // Sorted, so that the draws do not depend on the order in which records were read.
  const ids = [...a.keys()].sort();
  const groups = [...Map.groupBy(ids, groupOf).values()].map((members) =>
    members.map((id) => (a.get(id) ?? NaN) - (b.get(id) ?? NaN))
  );
  const estimate = bootstrapMean(groups, options);
  const weighted = groups.flatMap((group) =>
    group.map((x) => x / (group.length * groups.length))
  );
  return { ...estimate, pValue: signFlip(weighted, resamples, seed) };
}
