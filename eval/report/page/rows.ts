/**
 * Rows and bytes by layer and head. Part of the page: it runs in the browser.
 *
 * @module
 */
import type { Snapshot, View } from "../../view/types.ts";
import { bytesText, count, make, selectBox } from "./dom.ts";
import { rowCounts, snapshotAt } from "./kept.ts";

/** What all parts of a view look at. */
export interface ViewState {
  layer: number;
  head: number;
  generated: number;
}

/** Rows or bytes of each layer and head of one configuration, as a shaded table. */
export class RowTable {
  readonly #view: View;
  readonly #state: ViewState;
  readonly #place = make("div", { class: "wide" });
  #what: "rows" | "bytes" = "rows";
  #which = 0;
  #shown: { snapshot?: Snapshot; what: "rows" | "bytes" } = { what: "rows" };

  /** Builds the table into `root`. */
  constructor(root: HTMLElement, view: View, state: ViewState) {
    this.#view = view;
    this.#state = state;
    const which = selectBox(
      "Configuration",
      view.configurations.map(({ name }, i) => [String(i), name] as const),
      (value) => {
        this.#which = Number(value);
        this.update();
      },
    );
    const compressed = view.configurations.findIndex(({ method }) =>
      method !== "fullkv"
    );
    this.#which = Math.max(0, compressed);
    which.select.value = String(this.#which);
    const what = selectBox(
      "Show",
      [["rows", "rows"], ["bytes", "bytes"]],
      (value) => {
        this.#what = value as "rows" | "bytes";
        this.update();
      },
    );
    root.append(
      make("div", { class: "controls no-print" }, which.box, what.box),
      this.#place,
    );
    this.update();
  }

  /** Shows the moment that is chosen. */
  update(): void {
    const configuration = this.#view.configurations[this.#which]!;
    const snapshot = snapshotAt(configuration, this.#state.generated);
    // Layer and head are chosen far more often, and change nothing here.
    if (snapshot === this.#shown.snapshot && this.#what === this.#shown.what) {
      return;
    }
    this.#shown = { snapshot, what: this.#what };
    const { heads, name, granularity } = configuration;
    const rows = rowCounts(this.#view, configuration, snapshot);
    const values = this.#what === "rows"
      ? rows
      : rows.map((row, layer) =>
        row.map((_, head) => snapshot.bytes[layer * heads + head]!)
      );
    const most = Math.max(1, ...values.flat());
    const text = this.#what === "rows" ? count : bytesText;
    const sum = (row: number[]) => row.reduce((a, b) => a + b, 0);
    const kind = granularity === "query_head" ? "query head" : "KV head";
    this.#place.replaceChildren(make(
      "table",
      { class: "grid-table" },
      make(
        "caption",
        {},
        `${
          this.#what === "rows" ? "Rows" : "Bytes"
        } that ${name} holds, by layer and ${kind}: ${
          text(sum(values.map(sum)))
        } in all`,
      ),
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          make("th", { scope: "col" }, "Layer"),
          ...Array.from(
            { length: heads },
            (_, head) => make("th", { scope: "col" }, String(head)),
          ),
          make("th", { scope: "col" }, "All"),
        ),
      ),
      make(
        "tbody",
        {},
        ...values.map((row, layer) =>
          make(
            "tr",
            {},
            make("th", { scope: "row" }, String(layer)),
            ...row.map((value) =>
              make("td", { style: `--share:${value / most}` }, text(value))
            ),
            make("td", { class: "sum" }, text(sum(row))),
          )
        ),
      ),
    ));
  }
}
