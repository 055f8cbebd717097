/**
 * The tables of a report.
 *
 * @module
 */
import type { Comparison } from "../statistics/mod.ts";
import { type Column, formatBytes, type Table } from "../tables/mod.ts";
import type {
  ConfigurationSummary,
  Score,
  SectionSummary,
} from "./summarise.ts";

/** What the marks and intervals of the tables mean. */
export function explanation(summary: SectionSummary, level: number): string[] {
  const percent = `${+(100 * level).toFixed(1)} %`;
  const { reference, leftOut, unfinished } = summary.section;
  return [
    `Scores in percent with ${percent} bootstrap intervals. ≈: the difference to ${reference} may be chance (paired randomisation test, Holm-corrected over the table).`,
    ...(leftOut > 0
      ? [
        `${leftOut} examples are left out, as not every configuration has a record of them.`,
      ]
      : []),
    ...(unfinished > 0
      ? [`${unfinished} records of these runs are not there yet.`]
      : []),
  ];
}

/** A p-value; small ones are not shown as 0, which none of them is. */
function pText(p: number): string {
  return p < 0.0001 ? "<0.0001" : p.toFixed(4);
}

function scoreCell(score: Score) {
  return {
    value: 100 * score.mean,
    low: 100 * score.low,
    high: 100 * score.high,
    ...(score.difference === undefined
      ? {}
      : { noise: score.difference.noise }),
  };
}

const configuration: Column<{ name: string }> = {
  title: "Configuration",
  cell: ({ name }) => name,
};

/** Configurations by data sets, with the average. */
export function scoreTable(
  { section, configurations }: SectionSummary,
): Table<ConfigurationSummary> {
  const one = section.dataSets.length === 1;
  return {
    columns: [
      configuration,
      ...section.dataSets.map((dataSet): Column<ConfigurationSummary> => ({
        title: dataSet,
        digits: 1,
        cell: ({ scores }) => scoreCell(scores.get(dataSet)!),
      })),
      ...(one ? [] : [{
        title: "Average",
        digits: 1,
        cell: ({ average }: ConfigurationSummary) => scoreCell(average),
      }]),
      { title: "Examples", digits: 0, cell: ({ average }) => average.n },
    ],
    rows: configurations,
  };
}

/** Differences of the averages to the reference. */
export function differenceTable(
  { section, configurations }: SectionSummary,
  minEffect?: number,
): Table<ConfigurationSummary> {
  return {
    columns: [
      configuration,
      {
        title: `Minus ${section.reference}`,
        digits: 1,
        cell: ({ average: { difference } }) =>
          difference === undefined ? null : {
            value: 100 * difference.mean,
            low: 100 * difference.low,
            high: 100 * difference.high,
            noise: difference.noise,
          },
      },
      {
        title: "p",
        format: pText,
        cell: ({ average }) => average.difference?.pValue ?? null,
      },
      {
        title: "p (Holm)",
        format: pText,
        cell: ({ average }) => average.difference?.pHolm ?? null,
      },
      ...(minEffect === undefined ? [] : [{
        title: `Examples per data set to see ${+(100 * minEffect).toFixed(2)}`,
        digits: 0,
        cell: ({ examplesNeeded }: ConfigurationSummary) =>
          examplesNeeded ?? null,
      }]),
    ],
    rows: configurations.filter(({ name }) => name !== section.reference),
  };
}

/** Bytes and times. */
export function costTable(
  { section, configurations }: SectionSummary,
): Table<ConfigurationSummary> {
  const bytes = (
    title: string,
    value: (one: ConfigurationSummary) => number,
  ): Column<ConfigurationSummary> => ({
    title,
    cell: value,
    format: formatBytes,
  });
  return {
    columns: [
      configuration,
      bytes("Resident", ({ cost }) => cost.residentBytes),
      {
        title: `% of ${section.reference}`,
        digits: 1,
        cell: ({ cost }) => 100 * cost.share,
      },
      bytes("Promised", ({ cost }) => cost.promisedBytes),
      bytes("Peak of the batch", ({ cost }) => cost.peakBytes),
      { title: "ms/step", cell: ({ cost }) => cost.msPerToken },
      { title: "Prefill ms", digits: 1, cell: ({ cost }) => cost.prefillMs },
      { title: "Compress ms", digits: 1, cell: ({ cost }) => cost.compressMs },
    ],
    rows: configurations,
    notes: [
      "Means over the examples. Bytes are those of the page pool after prefill. Configurations that decoded as one batch share the time of its steps.",
    ],
  };
}

/** Every pair of configurations. */
export function pairTable({ pairs }: SectionSummary): Table<Comparison> {
  return {
    columns: [
      { title: "Configuration", cell: ({ name }) => name },
      { title: "Minus", cell: ({ against }) => against },
      {
        title: "Difference",
        digits: 1,
        cell: (pair) => ({
          value: 100 * pair.mean,
          low: 100 * pair.low,
          high: 100 * pair.high,
          noise: pair.noise,
        }),
      },
      { title: "p (Holm)", format: pText, cell: ({ pHolm }) => pHolm },
    ],
    rows: pairs,
    notes: ["≈: may be chance, corrected for the number of pairs."],
  };
}

/** One line per section, configuration and data set; the average stands as data set `average`. For programs. */
export interface LongRow {
  /** The section. */
  section: string;
  /** The configuration. */
  one: ConfigurationSummary;
  /** The data set. */
  dataSet: string;
  /** Its score. */
  score: Score;
}

/** All numbers of all sections in long form. */
export function longTable(
  summaries: readonly SectionSummary[],
): Table<LongRow> {
  const rows = summaries.flatMap(({ section, configurations }) =>
    configurations.flatMap((one): LongRow[] => [
      ...[...one.scores].map(([dataSet, score]) => ({
        section: section.title,
        one,
        dataSet,
        score,
      })),
      { section: section.title, one, dataSet: "average", score: one.average },
    ])
  );
  const column = (
    title: string,
    cell: Column<LongRow>["cell"],
  ): Column<LongRow> => ({ title, cell });
  return {
    columns: [
      column("section", ({ section }) => section),
      column("configuration", ({ one }) => one.name),
      column("method", ({ one }) => one.method),
      column("options", ({ one }) => JSON.stringify(one.options)),
      column("granularity", ({ one }) => one.granularity),
      column("data_set", ({ dataSet }) => dataSet),
      column("examples", ({ score }) => score.n),
      column("score", ({ score }) => score.mean),
      column("low", ({ score }) => score.low),
      column("high", ({ score }) => score.high),
      column("difference", ({ score }) => score.difference?.mean ?? null),
      column("difference_low", ({ score }) => score.difference?.low ?? null),
      column("difference_high", ({ score }) => score.difference?.high ?? null),
      column("p", ({ score }) => score.difference?.pValue ?? null),
      column("p_holm", ({ score }) => score.difference?.pHolm ?? null),
      column(
        "noise",
        ({ score }) =>
          score.difference === undefined
            ? null
            : String(score.difference.noise),
      ),
      column("resident_bytes", ({ one }) => one.cost.residentBytes),
      column("promised_bytes", ({ one }) => one.cost.promisedBytes),
      column("peak_bytes", ({ one }) => one.cost.peakBytes),
      column("ms_per_token", ({ one }) => one.cost.msPerToken),
      column("prefill_ms", ({ one }) => one.cost.prefillMs),
      column("compress_ms", ({ one }) => one.cost.compressMs),
      column("examples_needed", ({ one }) => one.examplesNeeded ?? null),
    ],
    rows,
  };
}
