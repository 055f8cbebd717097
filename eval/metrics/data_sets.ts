/**
 * Scores of whole data sets as LongBench, LongBench-E and RULER report them, and their averages.
 *
 * @module
 */
import { LONGBENCH_DATA_SETS } from "../../tasks/longbench/data_sets.ts";
import type { Json } from "../../tasks/types.ts";
import { roundNumpy2, roundPython2, sumNumpy } from "./_python_text.ts";
import { createMetric, METRIC_DEFINITIONS } from "./registry.ts";
import type { MetricName, ResolvedMetric } from "./registry.ts";

/** How a LongBench data set is scored. */
export interface LongBenchScoring {
  /** Name of its metric. */
  metric: MetricName;
  /** One of LongBench's six categories. */
  category: string;
  /** Whether only the first line of a prediction counts. */
  firstLine: boolean;
}

/** Scoring of the 21 LongBench data sets. */
export const LONGBENCH_SCORING: ReadonlyMap<string, LongBenchScoring> = new Map(
  [...LONGBENCH_DATA_SETS].map(([name, { category, metric, firstLine }]) => [
    name,
    { category, metric: metric as MetricName, firstLine },
  ]),
);

/**
 * The metric of a LongBench data set with the data set's own rules applied.
 *
 * @param dataset Name of the data set; the suffix `_e` of LongBench-E is accepted.
 * @param options Options for the metrics at hand, such as `similarity` or `labels`; those that the data set's metric
 * does not take are left out, so that one set of options serves all data sets.
 * @throws RangeError for an unknown data set.
 */
export function longbenchMetric(
  dataset: string,
  options: { [key: string]: Json } = {},
): ResolvedMetric {
  const scoring = LONGBENCH_SCORING.get(dataset.replace(/_e$/, ""));
  if (scoring === undefined) {
    throw new RangeError(
      `Cannot score data set as it must be one of LongBench: data set is "${dataset}"`,
    );
  }
  const known = new Set<string>(METRIC_DEFINITIONS[scoring.metric].options);
  const taken = Object.entries(options).filter(([name]) => known.has(name));
  return createMetric(scoring.metric, {
    ...Object.fromEntries(taken),
    firstLine: scoring.firstLine,
  });
}

function needScores(scores: readonly number[]): void {
  if (scores.length > 0) return;
  throw new RangeError(
    "Cannot score a data set as it must hold records: 0 records",
  );
}

/**
 * LongBench's score of a data set.
 *
 * @param scores Scores of its records, 0 to 1, in file order.
 * @returns Percent, two decimals.
 */
export function longbenchScore(scores: readonly number[]): number {
  needScores(scores);
  const sum = scores.reduce((total, score) => total + score, 0);
  return roundPython2((100 * sum) / scores.length);
}

/** Scores of a LongBench-E data set by length; `null` for an empty bin. */
export interface LengthBins {
  /** Below 4000 words. */
  "0-4k": number | null;
  /** 4000 to 7999 words. */
  "4-8k": number | null;
  /** 8000 words and more. */
  "8k+": number | null;
}

/**
 * LongBench-E's scores of a data set.
 *
 * @param records Score (0 to 1) and `length` field of every record, in file order.
 * @returns Percent with two decimals for each bin. The reference averages with NumPy, whose order of summation and
 * rounding are repeated here.
 */
export function longbenchBins(
  records: readonly { score: number; length: number }[],
): LengthBins {
  const bin = (from: number, to: number): number | null => {
    const scores = records.filter(({ length }) => length >= from && length < to)
      .map(({ score }) => score);
    if (scores.length === 0) return null;
    return roundNumpy2(100 * (sumNumpy(scores) / scores.length));
  };
  return {
    "0-4k": bin(-Infinity, 4000),
    "4-8k": bin(4000, 8000),
    "8k+": bin(8000, Infinity),
  };
}

function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The two averages of LongBench that are in use; a report must say which one it prints. */
export interface LongBenchAverages {
  /** Plain mean over the data sets. */
  overDatasets: number;
  /** Mean within each category, then over the categories. */
  overCategories: number;
}

/**
 * Averages over data sets.
 *
 * @param scores Percent by name of the data set.
 * @throws RangeError for an unknown data set or none.
 */
export function longbenchAverages(
  scores: ReadonlyMap<string, number>,
): LongBenchAverages {
  needScores([...scores.values()]);
  const categories = Map.groupBy(scores, ([dataset]) => {
    const scoring = LONGBENCH_SCORING.get(dataset.replace(/_e$/, ""));
    if (scoring !== undefined) return scoring.category;
    throw new RangeError(
      `Cannot average as the data set must be one of LongBench: data set is "${dataset}"`,
    );
  });
  const means = [...categories.values()].map((entries) =>
    meanOf(entries.map(([, score]) => score))
  );
  return {
    overDatasets: meanOf([...scores.values()]),
    overCategories: meanOf(means),
  };
}

/**
 * RULER's score of a task.
 *
 * @param scores Scores of its records, 0 to 1.
 * @returns Percent, two decimals; divided first and scaled afterwards, as RULER does.
 */
export function rulerScore(scores: readonly number[]): number {
  needScores(scores);
  const sum = scores.reduce((total, score) => total + score, 0);
  return roundPython2((sum / scores.length) * 100);
}

/** RULER's headline numbers. */
export interface RulerSummary {
  /** Mean over the tasks for each length, ascending. */
  byLength: { length: number; mean: number }[];
  /** Mean over the lengths. */
  mean: number;
  /** Mean with weights 1, 2, 3, ... from the shortest to the longest. */
  meanIncreasing: number;
  /** The same weights from the longest to the shortest. */
  meanDecreasing: number;
  /** Largest length with a mean of at least the threshold; `null` when there is none. */
  effectiveLength: number | null;
}

/** Mean that RULER asks of an effective length: the score of Llama-2-7B at 4096 tokens. */
export const RULER_THRESHOLD = 85.6;

/**
 * RULER's headline numbers.
 *
 * @param scores Percent of every task, by length in tokens.
 * @param threshold Mean that an effective length must reach.
 */
export function rulerSummary(
  scores: ReadonlyMap<number, readonly number[]>,
  threshold: number = RULER_THRESHOLD,
): RulerSummary {
  const byLength = [...scores].sort(([a], [b]) => a - b)
    .map(([length, tasks]) => ({ length, mean: meanOf(tasks) }));
  needScores(byLength.map(({ mean }) => mean));
  const weighted = (weight: (rank: number) => number): number => {
    const weights = byLength.map((_, rank) => weight(rank));
    const total = weights.reduce((sum, w) => sum + w, 0);
    return byLength.reduce(
      (sum, { mean }, rank) => sum + mean * (weights[rank] ?? 0),
      0,
    ) / total;
  };
  const reached = byLength.filter(({ mean }) => mean >= threshold);
  return {
    byLength,
    mean: weighted(() => 1),
    meanIncreasing: weighted((rank) => rank + 1),
    meanDecreasing: weighted((rank) => byLength.length - rank),
    effectiveLength: reached.at(-1)?.length ?? null,
  };
}
