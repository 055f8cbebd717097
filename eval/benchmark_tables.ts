/**
 * From records to the tables of a benchmark: configurations x data sets, with intervals and marks of what may be chance.
 *
 * @module
 */
import { byConfiguration } from "./collect.ts";
import { type Configuration, labelsOf } from "./engine/mod.ts";
import {
  longbenchAverages,
  longbenchBins,
  longbenchScore,
  rulerScore,
  rulerSummary,
} from "./metrics/mod.ts";
import type { EvalRecord } from "./records/mod.ts";
import { bootstrapMean, compareAll, mean } from "./statistics/mod.ts";
import {
  type Cell,
  type Column,
  formatBytes,
  formatNumber,
  type IntervalCell,
  NOISE_MARK,
  type Table,
} from "./tables/mod.ts";

/** One configuration's scores. */
export interface BenchmarkRow {
  /** Name of the configuration. */
  configuration: string;
  /** Percent by column, with bootstrap interval; `noise` where the difference to the full cache may be chance. */
  cells: Map<string, IntervalCell>;
  /** Mean over the columns, with interval. */
  mean: IntervalCell;
  /** Mean bytes of the cache after prefill. */
  residentBytes: number;
  /** Mean decode time, milliseconds a token. */
  msPerToken: number;
  /** Examples. */
  n: number;
}

/** How a benchmark reads its records. */
export interface BenchmarkRules {
  /** Column that a record belongs to. */
  column(record: EvalRecord): string;
  /** The benchmark's own score of a column, percent. */
  score(scores: readonly number[]): number;
}

/** Rules of LongBench: a column for every data set. */
export const LONGBENCH_RULES: BenchmarkRules = {
  column: ({ meta }) => String(meta.dataset),
  score: longbenchScore,
};

/** Rules of RULER: a column for every task. */
export const RULER_RULES: BenchmarkRules = {
  column: ({ task }) => task.name,
  score: rulerScore,
};

/**
 * Scores of all configurations.
 *
 * Differences are held against the full cache, where it is among the configurations, on the same examples; p-values are
 * corrected for the number of configurations.
 */
export function benchmarkRows(
  records: readonly EvalRecord[],
  configurations: readonly Configuration[],
  rules: BenchmarkRules,
): BenchmarkRow[] {
  const labels = labelsOf(configurations);
  const groups = [...byConfiguration(records, configurations).values()];
  const reference = configurations.findIndex(({ method }) =>
    method.name === "fullkv"
  );
  const noiseOf = (
    chosen: (record: EvalRecord) => boolean,
  ): Map<string, boolean> => {
    if (reference < 0) return new Map();
    const scores = new Map(groups.map((group, i) => [
      labels[i]!,
      new Map(
        group.filter(chosen).map((one) => [
          `${rules.column(one)}\0${one.example.hash}`,
          one.score,
        ]),
      ),
    ]));
    const compared = compareAll(scores, {
      reference: labels[reference]!,
      group: (example) => example.slice(0, example.indexOf("\0")),
    });
    return new Map(compared.map(({ name, noise }) => [name, noise]));
  };
  const columns = [...new Set(records.map(rules.column))];
  const noise = new Map(
    columns.map((column) => [
      column,
      noiseOf((record) => rules.column(record) === column),
    ]),
  );
  const overall = columns.length === 0 ? new Map() : noiseOf(() => true);
  return groups.map((group, i): BenchmarkRow => {
    const label = labels[i]!;
    const byColumn = Map.groupBy(group, rules.column);
    const cells = new Map([...byColumn].map(([column, members]) => {
      const scores = members.map(({ score }) => score);
      return [
        column,
        cellOf(rules.score(scores), [scores], noise.get(column)?.get(label)),
      ];
    }));
    const values = [...cells.values()].map(({ value }) => value);
    return {
      configuration: label,
      cells,
      mean: cellOf(
        mean(values),
        [...byColumn.values()].map((one) => one.map(({ score }) => score)),
        overall.get(label),
      ),
      residentBytes: mean(group.map(({ cache }) => cache.residentBytes)),
      msPerToken: mean(
        group.map(({ timing, tokens }) =>
          timing.decodeMs / Math.max(1, tokens.length)
        ),
      ),
      n: group.length,
    };
  });
}

function cellOf(
  value: number,
  groups: readonly (readonly number[])[],
  noise: boolean | undefined,
): IntervalCell {
  const { low, high } = bootstrapMean(groups);
  return {
    value,
    low: 100 * low,
    high: 100 * high,
    ...(noise === undefined ? {} : { noise }),
  };
}

const NOTES = [
  "Percent. In brackets the 95 % bootstrap interval of the mean. ≈: the paired difference to the full cache may be chance (randomisation test, Holm-corrected for the configurations of the table).",
];

/** The columns of data sets or tasks, in the order of their first records. */
function scoreColumns(
  rows: readonly BenchmarkRow[],
): Column<BenchmarkRow>[] {
  const names = [...new Set(rows.flatMap((row) => [...row.cells.keys()]))];
  return names.map((title) => ({
    title,
    cell: (row): Cell => row.cells.get(title) ?? null,
  }));
}

const COMMON: Column<BenchmarkRow>[] = [
  { title: "cache", cell: (row) => row.residentBytes, format: formatBytes },
  { title: "ms/step", cell: (row) => row.msPerToken },
  { title: "examples", cell: (row) => row.n, digits: 0 },
];

/** The table for a terminal: no intervals, titles over two lines. */
export function narrow<Row>(table: Table<Row>): Table<Row> {
  return {
    ...table,
    columns: table.columns.map((column): Column<Row> => ({
      ...column,
      title: column.title.replace(/_| /, (gap) => `${gap.trim()}\n`),
      cell: (row) => {
        const cell = column.cell(row);
        if (typeof cell !== "object" || cell === null) return cell;
        return `${formatNumber(cell.value, 1)}${
          cell.noise === true ? ` ${NOISE_MARK}` : ""
        }`;
      },
    })),
    notes:
      table.notes?.map((note) =>
        note.replace(/In brackets[^.]*\. /, "Intervals: see the files. ")
      ) ?? [],
  };
}

/** LongBench's table: data sets, then both averages in use. */
export function longbenchTable(
  rows: readonly BenchmarkRow[],
): Table<BenchmarkRow> {
  const averages = (row: BenchmarkRow) =>
    longbenchAverages(
      new Map([...row.cells].map(([name, { value }]) => [name, value])),
    );
  return {
    columns: [
      { title: "configuration", cell: (row) => row.configuration },
      ...scoreColumns(rows),
      { title: "mean of data sets", cell: (row) => row.mean },
      {
        title: "mean of categories",
        cell: (row) => averages(row).overCategories,
      },
      ...COMMON,
    ],
    rows,
    notes: NOTES,
  };
}

/** One configuration, data set and the three length bins of LongBench-E. */
export interface BinRow {
  /** Name of the configuration. */
  configuration: string;
  /** Data set. */
  dataset: string;
  /** Percent by bin; `null` for an empty one. */
  bins: ReturnType<typeof longbenchBins>;
}

/** LongBench-E's scores by length. */
export function longbenchBinTable(
  records: readonly EvalRecord[],
  configurations: readonly Configuration[],
): Table<BinRow> {
  const labels = labelsOf(configurations);
  const groups = [...byConfiguration(records, configurations).values()];
  const rows = groups.flatMap((group, i) =>
    [...Map.groupBy(group, LONGBENCH_RULES.column)].map((
      [dataset, members],
    ): BinRow => ({
      configuration: labels[i]!,
      dataset,
      bins: longbenchBins(
        members.map(({ score, meta }) => ({
          score,
          length: meta.length as number,
        })),
      ),
    }))
  );
  const bin = (name: keyof BinRow["bins"]): Column<BinRow> => ({
    title: name,
    cell: (row) => row.bins[name],
  });
  return {
    columns: [
      { title: "configuration", cell: (row) => row.configuration },
      { title: "data set", cell: (row) => row.dataset },
      bin("0-4k"),
      bin("4-8k"),
      bin("8k+"),
    ],
    rows,
  };
}

/** RULER's table at one length. */
export function rulerTable(
  rows: readonly BenchmarkRow[],
): Table<BenchmarkRow> {
  return {
    columns: [
      { title: "configuration", cell: (row) => row.configuration },
      ...scoreColumns(rows),
      { title: "mean", cell: (row) => row.mean },
      ...COMMON,
    ],
    rows,
    notes: NOTES,
  };
}

/** One configuration's scores over the lengths. */
export interface LengthRow {
  /** Name of the configuration. */
  configuration: string;
  /** RULER's headline numbers. */
  summary: ReturnType<typeof rulerSummary>;
}

/** RULER's headline numbers: mean by length, three means over lengths, effective length. */
export function rulerSummaryTable(
  byLength: ReadonlyMap<number, readonly BenchmarkRow[]>,
): Table<LengthRow> {
  const first = [...byLength.values()][0] ?? [];
  const rows = first.map(({ configuration }, i): LengthRow => ({
    configuration,
    summary: rulerSummary(
      new Map([...byLength].map(([length, rows]) => [
        length,
        [...rows[i]!.cells.values()].map(({ value }) => value),
      ])),
    ),
  }));
  const lengths = [...byLength.keys()].sort((a, b) => a - b);
  return {
    columns: [
      { title: "configuration", cell: (row) => row.configuration },
      ...lengths.map((length, i): Column<LengthRow> => ({
        title: String(length),
        cell: (row) => row.summary.byLength[i]!.mean,
      })),
      { title: "mean", cell: (row) => row.summary.mean },
      {
        title: "mean, long weighs more",
        cell: (row) => row.summary.meanIncreasing,
      },
      {
        title: "mean, short weighs more",
        cell: (row) => row.summary.meanDecreasing,
      },
      {
        title: "effective length",
        cell: (row) => row.summary.effectiveLength,
        digits: 0,
      },
    ],
    rows,
    notes: [
      "Percent, means over the tasks. Effective length: the largest with a mean of at least 85.6.",
    ],
  };
}
