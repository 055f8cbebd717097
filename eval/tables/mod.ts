/**
 * Tables of reports.
 *
 * Permissions: none.
 *
 * @module
 */
export { formatBytes, formatNumber, MISSING } from "./format.ts";
export { NOISE_MARK, toCsv, toMarkdown, toTerminal } from "./table.ts";
export type {
  Cell,
  Column,
  IntervalCell,
  Table,
  TerminalOptions,
} from "./table.ts";
