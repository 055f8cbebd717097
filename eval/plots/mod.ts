/**
 * Plots.
 *
 * @module
 */
export { needleHeatMap } from "./heat_map.ts";
export { renderPng } from "./render.ts";
