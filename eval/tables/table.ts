/**
 * One table, three forms: Markdown for documents, CSV for programs, boxes for terminals.
 *
 * @module
 */
import CliTable3 from "cli-table3";
import { formatNumber, MISSING } from "./format.ts";

/** A number with its interval. */
export interface IntervalCell {
  /** The number. */
  value: number;
  /** Lower end. */
  low: number;
  /** Upper end. */
  high: number;
  /** Whether its difference to the reference may be chance; marked with `≈`. */
  noise?: boolean;
}

/** Content of a cell; `null` is shown as a dash. */
export type Cell = string | number | null | IntervalCell;

/** A column: its title and what it takes from a row. */
export interface Column<Row> {
  /** Heading. */
  title: string;
  /** Content for a row. */
  cell: (row: Row) => Cell;
  /** Decimals of numbers outside CSV. Default: 2. */
  digits?: number;
  /** Text instead of a fixed count of decimals, outside CSV; for instance `formatBytes`. */
  format?: (value: number) => string;
}

/** A table. */
export interface Table<Row> {
  /** Columns from left to right. */
  columns: Column<Row>[];
  /** Rows from top to bottom. */
  rows: readonly Row[];
  /** Lines below the table; not part of CSV. */
  notes?: string[];
}

/** Mark of differences that may be chance. */
export const NOISE_MARK = "≈";

function isInterval(cell: Cell): cell is IntervalCell {
  return typeof cell === "object" && cell !== null;
}

function isNumeric<Row>(table: Table<Row>, column: Column<Row>): boolean {
  return table.rows.some((row) => typeof column.cell(row) !== "string");
}

function cellText<Row>(column: Column<Row>, cell: Cell): string {
  if (cell === null) return MISSING;
  if (typeof cell === "string") return cell;
  const text = (value: number): string =>
    column.format !== undefined && Number.isFinite(value)
      ? column.format(value)
      : formatNumber(value, column.digits);
  if (typeof cell === "number") return text(cell);
  const mark = cell.noise === true ? ` ${NOISE_MARK}` : "";
  return `${text(cell.value)} [${text(cell.low)}, ${text(cell.high)}]${mark}`;
}

/**
 * The table in Markdown; numbers stand to the right.
 *
 * @param table The table.
 */
export function toMarkdown<Row>(table: Table<Row>): string {
  const escape = (text: string): string =>
    text.replaceAll("\\", "\\\\").replaceAll("|", "\\|")
      .replace(/\r\n|\r|\n/g, " ");
  const line = (cells: string[]): string => `| ${cells.join(" | ")} |`;
  const lines = [
    line(table.columns.map(({ title }) => escape(title))),
    line(
      table.columns.map((column) => isNumeric(table, column) ? "---:" : "---"),
    ),
    ...table.rows.map((row) =>
      line(
        table.columns.map((column) =>
          escape(cellText(column, column.cell(row)))
        ),
      )
    ),
  ];
  const notes = (table.notes ?? []).map((note) => `\n${note}\n`);
  return lines.join("\n") + "\n" + notes.join("");
}

/**
 * The table as CSV (RFC 4180): numbers in full precision, empty for missing. A column with intervals becomes four:
 * value, low, high and noise.
 *
 * @param table The table.
 */
export function toCsv<Row>(table: Table<Row>): string {
  const quote = (text: string): string =>
    /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const number = (value: number): string =>
    Number.isFinite(value) ? String(value) : "";
  const wide = table.columns.map((column) =>
    table.rows.some((row) => isInterval(column.cell(row)))
  );
  const head = table.columns.flatMap(({ title }, i) =>
    wide[i]
      ? [title, `${title} low`, `${title} high`, `${title} noise`]
      : [title]
  );
  const rows = table.rows.map((row) =>
    table.columns.flatMap((column, i) => {
      const cell = column.cell(row);
      const rest = wide[i] ? ["", "", ""] : [];
      if (cell === null) return ["", ...rest];
      if (typeof cell === "string") return [cell, ...rest];
      if (typeof cell === "number") return [number(cell), ...rest];
      const noise = cell.noise === undefined ? "" : String(cell.noise);
      return [number(cell.value), number(cell.low), number(cell.high), noise];
    })
  );
  return [head, ...rows].map((cells) => cells.map(quote).join(",") + "\r\n")
    .join("");
}

/** Options of {@linkcode toTerminal}. */
export interface TerminalOptions {
  /** Whether to use colour. Default: on a terminal, unless `NO_COLOR` is set. */
  colour?: boolean;
}

/**
 * The table for a terminal. Wide characters are aligned; differences that may be chance are dimmed.
 *
 * @param table The table.
 * @param options Whether to use colour.
 */
export function toTerminal<Row>(
  table: Table<Row>,
  options: TerminalOptions = {},
): string {
  const colour = options.colour ?? (Deno.stdout.isTerminal() && !Deno.noColor);
  const style = (code: number, text: string): string =>
    colour ? `\x1b[${code}m${text}\x1b[0m` : text;
  const boxes = new CliTable3({
    head: table.columns.map(({ title }) => style(1, title)),
    colAligns: table.columns.map((column) =>
      isNumeric(table, column) ? "right" : "left"
    ),
    chars: {
      mid: "",
      "left-mid": "",
      "mid-mid": "",
      "right-mid": "",
    },
    style: { head: [], border: [] },
  });
  boxes.push(...table.rows.map((row) =>
    table.columns.map((column) => {
      const cell = column.cell(row);
      const text = cellText(column, cell);
      return isInterval(cell) && cell.noise === true ? style(2, text) : text;
    })
  ));
  return [boxes.toString(), ...(table.notes ?? [])].join("\n") + "\n";
}
