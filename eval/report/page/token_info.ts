/**
 * What is known of one token, as a small table. Part of the page: it runs in the browser.
 *
 * @module
 */
import { make } from "./dom.ts";
import { shadeOfShare } from "./kept.ts";

/** How many heads of each layer of a configuration hold the token. */
export interface TokenLine {
  name: string;
  cells: { kept: number; of: number }[];
}

/** A token in words, and a line per configuration that is shown. */
export interface TokenFacts {
  head: string;
  attention: string;
  lines: readonly TokenLine[];
}

/** A line per configuration, a column per layer; only cells that differ from those shown before are touched. */
export class TokenInfo {
  /** Where the facts are shown. */
  readonly root: HTMLElement;
  readonly #head = make("b");
  readonly #attention = document.createTextNode("");
  readonly #body = make("tbody");
  readonly #layers: number;
  #names = "";

  /** Builds the table for so many layers, without lines. */
  constructor(layers: number) {
    this.#layers = layers;
    this.root = make(
      "div",
      { class: "token-info" },
      make("p", {}, this.#head, this.#attention),
      make(
        "table",
        { class: "token-table" },
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("th", { scope: "col" }, "heads that keep it, layer"),
            ...Array.from(
              { length: layers },
              (_, layer) => make("th", { scope: "col" }, String(layer)),
            ),
          ),
        ),
        this.#body,
      ),
    );
  }

  /** Shows other facts. */
  show({ head, attention, lines }: TokenFacts): void {
    this.#head.textContent = head;
    this.#attention.data = attention;
    const names = JSON.stringify(lines.map(({ name }) => name));
    if (names !== this.#names) {
      this.#names = names;
      this.#body.replaceChildren(...lines.map(({ name }) =>
        make(
          "tr",
          {},
          make("th", { scope: "row" }, name),
          ...Array.from({ length: this.#layers }, () => make("td")),
        )
      ));
    }
    for (const [i, { cells }] of lines.entries()) {
      const row = this.#body.rows[i]!.cells;
      for (const [layer, { kept, of }] of cells.entries()) {
        const cell = row[layer + 1]!;
        const text = `${kept}/${of}`;
        if (cell.textContent === text) continue;
        cell.textContent = text;
        cell.className = `k${shadeOfShare(kept / of)}`;
      }
    }
  }
}
