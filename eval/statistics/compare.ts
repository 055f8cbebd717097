/**
 * Many configurations at once: which differences are more than noise?
 *
 * @module
 */
import { pairedDifference } from "./bootstrap.ts";
import type {
  PairedEstimate,
  PairedOptions,
  ScoresByExample,
} from "./bootstrap.ts";

/**
 * Holm's correction: p-values that may be compared with one threshold although many were computed.
 *
 * Paper: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
 *
 * @param pValues Any number of p-values.
 * @returns Adjusted values in the same order, at most 1.
 */
export function holm(pValues: readonly number[]): number[] {
  const order = [...pValues.keys()].sort((i, j) =>
    (pValues[i] ?? 1) - (pValues[j] ?? 1)
  );
  const adjusted = Array<number>(pValues.length).fill(1);
  let largest = 0;
  for (const [rank, i] of order.entries()) {
    const scaled = (pValues[i] ?? 1) * (pValues.length - rank);
    largest = Math.max(largest, Math.min(1, scaled));
    adjusted[i] = largest;
  }
  return adjusted;
}

/** One pair of configurations. */
export interface Comparison extends PairedEstimate {
  /** The configuration whose advantage is given. */
  name: string;
  /** The configuration it is compared with. */
  against: string;
  /** p-value corrected for all pairs of the call. */
  pHolm: number;
  /** Whether the difference may be chance: `pHolm` is above 1 - level. */
  noise: boolean;
}

/** Options of {@linkcode compareAll}. */
export interface CompareOptions extends PairedOptions {
  /** Compare everything with this configuration alone. Default: every pair. */
  reference?: string;
}

/**
 * Compares configurations on the same examples, corrected for their number.
 *
 * @param scores Scores by example for every configuration.
 * @param options Draws, level, seed, groups, reference.
 * @returns One comparison for each configuration but the reference, or one for each pair.
 * @throws RangeError for an unknown reference and when configurations hold different examples.
 */
export function compareAll(
  scores: ReadonlyMap<string, ScoresByExample>,
  options: CompareOptions = {},
): Comparison[] {
  const names = [...scores.keys()];
  const { reference, level = 0.95 } = options;
  if (reference !== undefined && !scores.has(reference)) {
    throw new RangeError(
      `Cannot compare as the reference must be one of ${
        names.join(", ")
      }: reference is "${reference}"`,
    );
  }
  const pairs = reference === undefined
    ? names.flatMap((a, i) => names.slice(i + 1).map((b) => [a, b] as const))
    : names.filter((a) => a !== reference).map((a) => [a, reference] as const);
  const empty = new Map<string, number>();
  const found = pairs.map(([name, against]) => ({
    name,
    against,
    ...pairedDifference(
      scores.get(name) ?? empty,
      scores.get(against) ?? empty,
      options,
    ),
  }));
  const adjusted = holm(found.map(({ pValue }) => pValue));
  return found.map((pair, i) => {
    const pHolm = adjusted[i] ?? 1;
    return { ...pair, pHolm, noise: pHolm > 1 - level };
  });
}
