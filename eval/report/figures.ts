/**
 * The pictures of a report.
 *
 * @module
 */
import {
  accuracyAgainstBudget,
  accuracyAgainstBytes,
  needleHeatMap,
  type NeedlePanel,
  type Plot,
  rowsPerLayer,
} from "../plots/mod.ts";
import { nameApart, without } from "./_names.ts";
import type { ReportConfiguration } from "./collect.ts";
import type { ConfigurationSummary, SectionSummary } from "./summarise.ts";

/** A picture with its name and what it shows. */
export interface Figure {
  /** File name without ending. */
  name: string;
  /** One sentence for people who do not see it. */
  caption: string;
  /** The plot. */
  plot: Plot;
}

/** Configurations that differ in nothing but the budget. */
export interface BudgetSeries {
  /** The method, and the options that tell it from its neighbours. */
  name: string;
  /** By rising budget. */
  members: (ConfigurationSummary & { budget: number })[];
}

/** Groups configurations that have a budget into series. */
export function budgetSeries(
  configurations: readonly ConfigurationSummary[],
): BudgetSeries[] {
  const withBudget = configurations.flatMap((one) =>
    typeof one.options.budget === "number"
      ? [{ ...one, budget: one.options.budget }]
      : []
  );
  const rest = (one: ConfigurationSummary) => ({
    ...without(one.options, ["budget"]),
    granularity: one.granularity,
  });
  const groups = [
    ...Map.groupBy(
      withBudget,
      (one) => JSON.stringify([one.method, Object.entries(rest(one)).sort()]),
    )
      .values(),
  ];
  const names = nameApart(
    groups,
    ([one]) => one!.method,
    ([one]) => rest(one!),
  );
  return groups.map((members) => ({
    name: names.get(members)!,
    members: members.toSorted((a, b) => a.budget - b.budget),
  }));
}

/** Places of a heat map: records whose facts hold a length and a depth. */
export function needlePanel(
  { name, records }: ReportConfiguration,
  dataSet: string,
): NeedlePanel {
  const scores = [...records.get(dataSet)?.values() ?? []].flatMap((record) => {
    const { length, depth } = record.meta;
    return typeof length === "number" && typeof depth === "number"
      ? [{ length, depth, score: record.score }]
      : [];
  });
  return { title: name, scores };
}

/** A file name out of a title. */
export function fileName(title: string): string {
  return title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "_")
    .replaceAll(/^_|_$/g, "");
}

/**
 * All pictures that a section has the records for.
 *
 * @param summary The section.
 * @param options Coverage of the bands.
 */
export function sectionFigures(
  { section, configurations }: SectionSummary,
  options: { level?: number } = {},
): Figure[] {
  const note = `Bands: ${+(100 * (options.level ?? 0.95)).toFixed(
    1,
  )} % bootstrap intervals`;
  const scoreTitle = section.dataSets.length === 1
    ? `${section.dataSets[0]} (%)`
    : `Average of ${section.dataSets.length} data sets (%)`;
  const reference = configurations.find(({ name }) =>
    name === section.reference
  )!;
  const point = ({ average, cost }: ConfigurationSummary) => ({
    score: average.mean,
    low: average.low,
    high: average.high,
    residentBytes: cost.residentBytes,
  });
  const series = budgetSeries(
    configurations.filter((one) => one !== reference),
  );
  const shared = {
    scoreTitle,
    note,
    reference: { name: reference.name, ...point(reference) },
  };
  const figures: Figure[] = [];
  if (series.length > 0) {
    figures.push({
      name: "score_by_budget",
      caption: "Score against the budget of each method",
      plot: accuracyAgainstBudget(
        series.map(({ name, members }) => ({
          name,
          points: members.map((one) => ({ budget: one.budget, ...point(one) })),
        })),
        { title: `${section.model}: score against budget`, ...shared },
      ),
    }, {
      name: "score_by_bytes",
      caption: "Score against the bytes that the cache really held",
      plot: accuracyAgainstBytes(
        series.map(({ name, members }) => ({
          name,
          points: members.map(point),
        })),
        { title: `${section.model}: score against resident bytes`, ...shared },
      ),
    });
  }
  const budgets = [
    ...new Set(
      series.flatMap(({ members }) => members.map(({ budget }) => budget)),
    ),
  ].sort((a, b) => a - b);
  for (const dataSet of section.dataSets) {
    const panels = section.configurations.map((one) => ({
      ...needlePanel(one, dataSet),
      budget: one.options.budget,
    }));
    if (panels.some(({ scores }) => scores.length === 0)) continue;
    // Side by side is what differs in the method alone: one picture for each budget.
    for (const budget of budgets.length > 1 ? budgets : [undefined]) {
      const shown = panels.filter((panel) =>
        budget === undefined || typeof panel.budget !== "number" ||
        panel.budget === budget
      );
      const at = budget === undefined ? "" : `, budget ${budget}`;
      figures.push({
        name: fileName(`heat_map_${dataSet}_${budget ?? ""}`),
        caption: `Score of ${dataSet} by length and depth${at}`,
        plot: needleHeatMap(shown, {
          title: `${section.model}: ${dataSet}${at}`,
        }),
      });
    }
  }
  for (const budget of budgets) {
    const members = series.flatMap(({ name, members }) =>
      members.filter((one) => one.budget === budget)
        .map(({ rows }) => ({ name, rows }))
    );
    figures.push({
      name: `rows_${budget}`,
      caption: `Rows kept in each layer at budget ${budget}`,
      plot: rowsPerLayer(members, {
        title: `${section.model}: rows kept per layer, budget ${budget}`,
        budget,
      }),
    });
  }
  return figures;
}
