/**
 * The sources of the page as text. They come with the module graph, so writing a page needs no permission to read.
 *
 * @module
 */
import { stripTypeScriptTypes } from "node:module";
import pack from "../view/pack.ts" with { type: "text" };
import types from "../view/types.ts" with { type: "text" };
import attention from "./page/attention.ts" with { type: "text" };
import charts from "./page/charts.ts" with { type: "text" };
import dom from "./page/dom.ts" with { type: "text" };
import explorer from "./page/explorer.ts" with { type: "text" };
import hint from "./page/hint.ts" with { type: "text" };
import kept from "./page/kept.ts" with { type: "text" };
import main from "./page/main.ts" with { type: "text" };
import panel from "./page/panel.ts" with { type: "text" };
import rows from "./page/rows.ts" with { type: "text" };
import style from "./page/style.css" with { type: "text" };
import tables from "./page/tables.ts" with { type: "text" };
import tokenInfo from "./page/token_info.ts" with { type: "text" };

/** In an order in which nothing is used at the top level before it is there. */
const MODULES = [
  types,
  pack,
  dom,
  hint,
  kept,
  tables,
  charts,
  attention,
  rows,
  panel,
  tokenInfo,
  explorer,
  main,
];

/** One TypeScript module as part of one JavaScript program: without types, imports, exports and comments on lines of their own. */
function part(source: string): string {
  return stripTypeScriptTypes(source)
    .replaceAll(/^import\b[^;]*;$/gm, "")
    .replaceAll(/^export (?=(async |)function|const|class|let)/gm, "")
    .replaceAll(/^\s*\/\*\*[\s\S]*?\*\/$/gm, "")
    .replaceAll(/^\s*\/\/.*$/gm, "")
    .replaceAll(/[ \t]+$/gm, "")
    .replaceAll(/\n{2,}/g, "\n");
}

/** The program of the page. */
export function pageScript(): string {
  return MODULES.map(part).join("\n");
}

/** The style of the page. */
export const PAGE_STYLE: string = style;
