/**
 * Brings the page to life. Part of the page: it runs in the browser.
 *
 * @module
 */
import { unpackView } from "../../view/pack.ts";
import { AttentionMap } from "./attention.ts";
import { curves, heatMaps } from "./charts.ts";
import { found, make } from "./dom.ts";
import { Explorer } from "./explorer.ts";
import type { SectionPictures } from "./pictures.ts";
import { RowTable, type ViewState } from "./rows.ts";
import { enliven } from "./tables.ts";

const THEMES = ["auto", "light", "dark"];

function themeButton(): void {
  const root = document.documentElement;
  const button = found(document.querySelector("#theme"), "a theme button");
  button.addEventListener("click", () => {
    const at = THEMES.indexOf(root.dataset.theme ?? "auto");
    const theme = THEMES[(at + 1) % THEMES.length]!;
    root.dataset.theme = theme;
    button.textContent = `Colours: ${theme}`;
    dispatchEvent(new Event("kvf-theme"));
  });
}

async function showView(source: HTMLScriptElement): Promise<void> {
  const section = found(source.closest("section"), "a section of the view");
  const part = (name: string): HTMLElement =>
    found(section.querySelector<HTMLElement>(`.${name}`), `a part "${name}"`);
  const view = await unpackView(found(source.textContent, "a view"));
  const state: ViewState = { layer: -1, head: -1, generated: 0 };
  const rows = new RowTable(part("rows"), view, state);
  const explorer = new Explorer(
    part("explorer"),
    view,
    state,
    () => rows.update(),
  );
  const map = view.attention === null
    ? undefined
    : new AttentionMap(part("attention-map"), view, view.attention);
  const redraw = (): void => {
    explorer.update();
    map?.update();
  };
  for (const event of ["kvf-theme", "beforeprint", "afterprint"]) {
    addEventListener(event, redraw);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

async function start(): Promise<void> {
  themeButton();
  for (
    const table of document.querySelectorAll<HTMLTableElement>("table.sortable")
  ) enliven(table);
  for (
    const source of document.querySelectorAll<HTMLScriptElement>(
      "script.pictures",
    )
  ) {
    const data: SectionPictures = JSON.parse(source.textContent ?? "");
    const place = make("div", { class: "pictures" });
    place.append(
      make("div", { class: "charts" }, ...data.charts.map(curves)),
      ...data.heatMaps.map(({ title, panels }) => heatMaps(title, panels)),
    );
    source.after(place);
  }
  for (
    const source of document.querySelectorAll<HTMLScriptElement>("script.view")
  ) await showView(source);
  document.documentElement.dataset.ready = "";
}

await start();
