/**
 * The numbers of a report: scores with their uncertainty, differences to the reference, and what they cost.
 *
 * @module
 */
import type { EvalRecord, JsonObject } from "../records/mod.ts";
import { expandRows } from "../records/mod.ts";
import {
  bootstrapMean,
  type BootstrapOptions,
  compareAll,
  type Comparison,
  type Estimate,
  holm,
  mean,
  pairedDifference,
  type PairedEstimate,
  requiredExamples,
  type ScoresByExample,
  standardDeviation,
} from "../statistics/mod.ts";
import type { ReportConfiguration, Section } from "./collect.ts";

/** A difference to the reference, corrected for the number of comparisons made at once. */
export interface Difference extends PairedEstimate {
  /** p-value after Holm's correction. */
  pHolm: number;
  /** Whether it may be chance. */
  noise: boolean;
}

/** A score with its difference to the reference; the reference has none. */
export interface Score extends Estimate {
  /** Score minus the reference's. */
  difference?: Difference;
}

/** What a configuration cost; means over its examples. */
export interface Cost {
  /** Bytes the cache held after prefill. */
  residentBytes: number;
  /** Bytes the method promised then. */
  promisedBytes: number;
  /** Highest bytes of the pool while the example was worked on, all configurations of its batch together. */
  peakBytes: number;
  /** `residentBytes` over the reference's. */
  share: number;
  /** Time of a decode step; configurations that decode together share it. */
  msPerToken: number;
  /** Time of the prefill. */
  prefillMs: number;
  /** Time of scoring, selecting and evicting. */
  compressMs: number;
}

/** One configuration in numbers. */
export interface ConfigurationSummary {
  /** Name in tables. */
  name: string;
  /** Name of the method. */
  method: string;
  /** Its options, resolved. */
  options: JsonObject;
  /** What one stored head was. */
  granularity: string;
  /** Scores by data set, 0 to 1. */
  scores: Map<string, Score>;
  /** Mean over the data sets, each weighing the same. */
  average: Score;
  /** What it cost. */
  cost: Cost;
  /** Rows after prefill, `[layers][stored heads]`, means over examples. */
  rows: number[][];
  /** Examples per data set that would show the asked effect. */
  examplesNeeded?: number;
}

/** One section in numbers. */
export interface SectionSummary {
  /** What it sums up. */
  section: Section;
  /** In the section's order. */
  configurations: ConfigurationSummary[];
  /** Every pair of configurations over all data sets, when asked for. */
  pairs: Comparison[];
}

/** Options of {@linkcode summarise}. */
export interface SummaryOptions extends BootstrapOptions {
  /** Smallest difference that matters, 0 to 1: tells how many examples would show it. */
  minEffect?: number;
  /** Whether to compare every pair. */
  pairs?: boolean;
}

const dataSetOf = (id: string): string => id.slice(0, id.indexOf("\0"));

/** Scores by `data set \0 example`. */
function scoresOf(
  { records }: ReportConfiguration,
  dataSets: readonly string[],
): Map<string, number> {
  return new Map(
    dataSets.flatMap((dataSet) =>
      [...records.get(dataSet) ?? []].map(([key, { score }]) =>
        [`${dataSet}\0${key}`, score] as const
      )
    ),
  );
}

function within(scores: ScoresByExample, dataSet: string): ScoresByExample {
  return new Map([...scores].filter(([id]) => dataSetOf(id) === dataSet));
}

function costOf(records: readonly EvalRecord[]): Omit<Cost, "share"> {
  const over = (value: (record: EvalRecord) => number) =>
    mean(records.map(value));
  const tokens = records.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return {
    residentBytes: over(({ cache }) => cache.residentBytes),
    promisedBytes: over(({ cache }) => cache.promisedBytes),
    peakBytes: over(({ cache }) => cache.peakBytes),
    msPerToken: records.reduce((sum, { timing }) => sum + timing.decodeMs, 0) /
      Math.max(1, tokens),
    prefillMs: over(({ timing }) => timing.prefillMs),
    compressMs: over(({ timing }) => timing.compressMs ?? 0),
  };
}

/** Mean rows per layer and head. Records with one number per layer are as many heads as the others have, or one. */
function meanRows(records: readonly EvalRecord[]): number[][] {
  const heads = Math.max(
    1,
    ...records.flatMap(({ cache }) =>
      cache.rows.map((layer) => typeof layer === "number" ? 1 : layer.length)
    ),
  );
  const sums: number[][] = [];
  for (const { cache } of records) {
    for (const [layer, row] of expandRows(cache.rows, heads).entries()) {
      const sum = sums[layer] ??= Array<number>(heads).fill(0);
      row.forEach((n, head) => sum[head] = (sum[head] ?? 0) + n);
    }
  }
  return sums.map((layer) => layer.map((sum) => sum / records.length));
}

/** Standard deviation that examples per data set are planned with: data sets weigh the same. */
function plannedDeviation(
  differences: ReadonlyMap<string, readonly number[]>,
): number {
  const groups = [...differences.values()];
  const variance = groups.reduce(
    (sum, group) =>
      sum + (group.length < 2 ? NaN : standardDeviation(group) ** 2),
    0,
  );
  return Math.sqrt(variance) / groups.length;
}

/**
 * Sums a section up. Intervals are bootstrap intervals; differences are paired by example and marked as noise by Holm's
 * correction: the averages of all configurations are one family of comparisons, the cells of the table another.
 *
 * @param section The section.
 * @param options Draws, level, seed, effect, pairs.
 */
export function summarise(
  section: Section,
  options: SummaryOptions = {},
): SectionSummary {
  const { dataSets, configurations, reference } = section;
  const { level = 0.95, minEffect, pairs, ...rest } = options;
  const bootstrap = { ...rest, level };
  const scores = new Map(
    configurations.map((one) => [one.name, scoresOf(one, dataSets)] as const),
  );
  const base = scores.get(reference)!;
  const averages = new Map(
    compareAll(scores, { ...bootstrap, reference, group: dataSetOf })
      .map((found) => [found.name, found] as const),
  );
  const cells = configurations.filter(({ name }) => name !== reference)
    .flatMap(({ name }) =>
      dataSets.map((dataSet) => ({
        name,
        dataSet,
        ...pairedDifference(
          within(scores.get(name)!, dataSet),
          within(base, dataSet),
          bootstrap,
        ),
      }))
    );
  const adjusted = holm(cells.map(({ pValue }) => pValue));
  const differences = new Map(cells.map((cell, i) => {
    const { name, dataSet, ...estimate } = cell;
    const pHolm = adjusted[i] ?? 1;
    return [
      `${name}\0${dataSet}`,
      { ...estimate, pHolm, noise: pHolm > 1 - level },
    ] as const;
  }));
  const referenceBytes = costOf(
    allRecords(configurations.find(({ name }) => name === reference)!),
  ).residentBytes;
  const summaries = configurations.map((one): ConfigurationSummary => {
    const own = scores.get(one.name)!;
    const groups = dataSets.map((
      dataSet,
    ) => [...within(own, dataSet).values()]);
    const records = allRecords(one);
    const cost = costOf(records);
    const average = averages.get(one.name);
    return {
      name: one.name,
      method: one.method,
      options: one.options,
      granularity: one.granularity,
      scores: new Map(dataSets.map((dataSet, i) => {
        const difference = differences.get(`${one.name}\0${dataSet}`);
        return [dataSet, {
          ...bootstrapMean([groups[i]!], bootstrap),
          ...(difference === undefined ? {} : { difference }),
        }];
      })),
      average: {
        ...bootstrapMean(groups, bootstrap),
        ...(average === undefined ? {} : { difference: average }),
      },
      cost: { ...cost, share: cost.residentBytes / referenceBytes },
      rows: meanRows(records),
      ...(minEffect === undefined || one.name === reference ? {} : {
        examplesNeeded: needed(own, base, minEffect, {
          level,
          comparisons: configurations.length - 1,
        }),
      }),
    };
  });
  return {
    section,
    configurations: summaries,
    pairs: pairs ? compareAll(scores, { ...bootstrap, group: dataSetOf }) : [],
  };
}

/** Examples per data set that would show `minEffect`; NaN where a data set has a single example. */
function needed(
  own: ScoresByExample,
  base: ScoresByExample,
  minEffect: number,
  plan: { level: number; comparisons: number },
): number {
  const differences = new Map<string, number[]>();
  for (const [id, score] of own) {
    const group = differences.get(dataSetOf(id)) ?? [];
    differences.set(dataSetOf(id), group);
    group.push(score - base.get(id)!);
  }
  const deviation = plannedDeviation(differences);
  return Number.isNaN(deviation)
    ? NaN
    : requiredExamples(minEffect, { ...plan, deviation });
}

/** Records of a configuration over all data sets. */
export function allRecords({ records }: ReportConfiguration): EvalRecord[] {
  return [...records.values()].flatMap((examples) => [...examples.values()]);
}
