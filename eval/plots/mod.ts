/**
 * Plots of reports: a function for each kind, and rendering to SVG and PNG.
 *
 * Permissions: plots and SVG need none. PNG needs read of `node_modules/@resvg/resvg-wasm` and
 * `node_modules/dejavu-fonts-ttf`. Nothing asks for environment variables, network or ffi.
 *
 * @module
 */
export { attentionPicture } from "./attention_picture.ts";
export type { AttentionPanel, AttentionPicture } from "./attention_picture.ts";
export { needleHeatMap } from "./needle_heat_map.ts";
export type {
  NeedleOptions,
  NeedlePanel,
  NeedleScore,
} from "./needle_heat_map.ts";
export { renderPng, renderSvg } from "./render.ts";
export type { Plot, PngOptions } from "./render.ts";
export { rowsPerLayer } from "./rows_per_layer.ts";
export type { LayerRows, LayerRowsOptions } from "./rows_per_layer.ts";
export { accuracyAgainstBudget, accuracyAgainstBytes } from "./score_curves.ts";
export type {
  BudgetPoint,
  BytesPoint,
  ScoreCurveOptions,
  ScorePoint,
  ScoreSeries,
} from "./score_curves.ts";
