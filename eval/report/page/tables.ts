/**
 * Sorting and filtering of the tables that stand in the page. Part of the page: it runs in the browser.
 *
 * @module
 */
import { found, make } from "./dom.ts";

/** What a cell is sorted by: a number where it has one. */
function keyOf(row: HTMLTableRowElement, column: number): number | string {
  const cell = row.cells[column];
  const value = cell?.dataset.value;
  if (value === undefined) return cell?.textContent ?? "";
  return value === "" ? NaN : Number(value);
}

/** Order of two keys; what is missing comes last in either direction. */
function order(
  a: number | string,
  b: number | string,
  direction: number,
): number {
  const missing = (key: number | string) => Number(Number.isNaN(key));
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") {
    return direction * (a - b);
  }
  return direction *
    String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table: HTMLTableElement, column: number): void {
  const heads = [...found(table.tHead?.rows[0], "a table head").cells];
  const head = found(heads[column], "the column");
  const up = head.getAttribute("aria-sort") === "descending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = found(table.tBodies[0], "a table body");
  const rows = [...body.rows];
  rows.sort((a, b) =>
    order(keyOf(a, column), keyOf(b, column), up ? 1 : -1) ||
    Number(a.dataset.place) - Number(b.dataset.place)
  );
  body.append(...rows);
}

/** Makes a table's heads sort it, and a field above it choose its rows. */
export function enliven(table: HTMLTableElement): void {
  const body = found(table.tBodies[0], "a table body");
  [...body.rows].forEach((row, i) => row.dataset.place = String(i));
  const heads = found(table.tHead?.rows[0], "a table head").cells;
  for (const [column, head] of [...heads].entries()) {
    const text = head.textContent ?? "";
    head.replaceChildren(
      make("button", {
        type: "button",
        title: `Sort by ${text}`,
        click: () => sortBy(table, column),
      }, text),
    );
  }
  const shown = make("output", { "aria-live": "polite" });
  const field = make("input", {
    type: "search",
    placeholder: "words, all of which must occur",
    input: () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let n = 0;
      for (const row of body.rows) {
        const name = (row.cells[0]?.textContent ?? "").toLowerCase();
        const fits = words.every((word) => name.includes(word));
        row.hidden = !fits;
        if (fits) n++;
      }
      shown.textContent = `${n} of ${body.rows.length} rows`;
    },
  });
  table.parentElement?.before(
    make(
      "p",
      { class: "filter no-print" },
      make("label", {}, "Show ", field),
      " ",
      shown,
    ),
  );
}
