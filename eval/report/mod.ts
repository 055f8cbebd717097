/**
 * Reports: from the records of a results folder to tables, pictures and one HTML page.
 *
 * Permissions: none for tables and SVG; see `eval/plots` for PNG.
 *
 * @module
 */
export { collectSections } from "./collect.ts";
export type {
  CollectOptions,
  ReportConfiguration,
  Section,
} from "./collect.ts";
export { budgetSeries, sectionFigures } from "./figures.ts";
export type { BudgetSeries, Figure } from "./figures.ts";
export { pageHtml, pageViewOf } from "./html.ts";
export type { PageContent, PageView } from "./html.ts";
export { reportMarkdown } from "./markdown.ts";
export type { IllustratedSection } from "./markdown.ts";
export { plannedOf } from "./planned.ts";
export type { Planned } from "./planned.ts";
export { summarise } from "./summarise.ts";
export type {
  ConfigurationSummary,
  Cost,
  Difference,
  Score,
  SectionSummary,
  SummaryOptions,
} from "./summarise.ts";
export {
  costTable,
  differenceTable,
  longTable,
  pairTable,
  scoreTable,
} from "./tables.ts";
export type { LongRow } from "./tables.ts";
