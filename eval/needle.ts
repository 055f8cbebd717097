/**
 * Needle in a haystack: from records to one score per configuration, length and depth.
 *
 * @module
 */
import type { EvalRecord } from "./records/mod.ts";

/** One cell of a heat map. */
export interface NeedleCell {
  /** Name of the configuration. */
  configuration: string;
  /** Prompt length asked for, tokens. */
  length: number;
  /** Depth of the needle, percent. */
  depth: number;
  /** Mean score, 0 to 1. */
  score: number;
  /** Examples. */
  n: number;
}

/** One configuration over all cells. */
export interface NeedleRow {
  /** Name of the configuration. */
  configuration: string;
  /** Mean score over examples, 0 to 1. */
  score: number;
  /** 95 % Wilson interval of the share of full scores. */
  interval: [number, number];
  /** Share of answers that are the expected one and nothing else. */
  exact: number;
  /** Mean bytes of the cache after prefill. */
  residentBytes: number;
  /** Mean decode time, milliseconds a token. */
  msPerToken: number;
  /** Examples. */
  n: number;
}

/** A configuration's name in tables: method and budget. */
export function configurationName(record: Pick<EvalRecord, "method">): string {
  const { name, options } = record.method;
  return options.budget === undefined ? name : `${name} ${options.budget}`;
}

/** Means per configuration, length and depth. */
export function needleCells(records: readonly EvalRecord[]): NeedleCell[] {
  const groups = Map.groupBy(
    records,
    (record) =>
      `${
        configurationName(record)
      }\0${record.meta.length}\0${record.meta.depth}`,
  );
  return [...groups.values()].map((group) => ({
    configuration: configurationName(group[0]!),
    length: group[0]!.meta.length as number,
    depth: group[0]!.meta.depth as number,
    score: mean(group.map(({ score }) => score)),
    n: group.length,
  }));
}

/** Means per configuration, in the records' order. */
export function needleRows(records: readonly EvalRecord[]): NeedleRow[] {
  return [...Map.groupBy(records, configurationName)].map((
    [configuration, group],
  ) => ({
    configuration,
    score: mean(group.map(({ score }) => score)),
    interval: wilson(
      group.filter(({ score }) => score === 1).length,
      group.length,
    ),
    exact: mean(group.map(({ scores }) => scores?.exact ?? 0)),
    residentBytes: mean(group.map(({ cache }) => cache.residentBytes)),
    msPerToken: mean(
      group.map(({ timing, tokens }) =>
        timing.decodeMs / Math.max(1, tokens.length)
      ),
    ),
    n: group.length,
  }));
}

/** The table in Markdown. */
export function needleMarkdown(rows: readonly NeedleRow[]): string {
  return [
    "| configuration | score | 95 % interval | exact | cache bytes | ms/step | examples |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...rows.map((row) =>
      `| ${row.configuration} | ${percent(row.score)} | ${
        percent(row.interval[0])
      } to ${percent(row.interval[1])} | ${percent(row.exact)} | ${
        Math.round(row.residentBytes)
      } | ${row.msPerToken.toFixed(2)} | ${row.n} |`
    ),
    "",
  ].join("\n");
}

/** The cells as CSV. */
export function needleCsv(cells: readonly NeedleCell[]): string {
  const quote = (text: string) =>
    /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  return [
    "configuration,length,depth,score,n",
    ...cells.map((cell) =>
      [quote(cell.configuration), cell.length, cell.depth, cell.score, cell.n]
        .join(",")
    ),
    "",
  ].join("\n");
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Wilson's score interval of a share, 95 %. */
function wilson(hits: number, n: number): [number, number] {
  const z = 1.959964, share = hits / n, z2 = z * z;
  const centre = (share + z2 / (2 * n)) / (1 + z2 / n);
  const half = z * Math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) /
    (1 + z2 / n);
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}
