/**
 * The look that all plots share.
 *
 * @module
 */

/** Font of all text. */
export const FONT = "DejaVu Sans";

/** Colour of text. */
export const INK = "#262626";
const FAINT = "#e3e3e3";

/** Colour of the uncompressed reference. */
export const REFERENCE_COLOUR = "#6b6b6b";

/** Colour of the series in the background. */
export const BACKGROUND_COLOUR = "#d2d2d2";

/** Colours of Okabe and Ito that can be told apart with colour-blind eyes, the readable ones first. */
const COLOURS = [
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
];

/** Shapes; they change when the colours are used up, so that no two series look alike. */
const SHAPES = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "triangle-down",
  "cross",
];

/** Colours for any number of series. */
export function coloursFor(count: number): string[] {
  return Array.from({ length: count }, (_, i) => COLOURS[i % 6] ?? INK);
}

/** Shapes for any number of series; with {@linkcode coloursFor} the first 36 pairs differ. */
export function shapesFor(count: number): string[] {
  return Array.from(
    { length: count },
    (_, i) => SHAPES[(i + Math.floor(i / 6)) % 6] ?? "circle",
  );
}

/** Configuration of every specification. */
export const CONFIG = {
  font: FONT,
  background: "white",
  padding: 12,
  view: { stroke: null },
  axis: {
    labelFontSize: 11,
    titleFontSize: 12,
    titleFontWeight: "normal",
    titlePadding: 8,
    labelColor: INK,
    titleColor: INK,
    gridColor: FAINT,
    domainColor: "#8a8a8a",
    tickColor: "#8a8a8a",
    labelLimit: 0,
  },
  title: {
    fontSize: 13,
    fontWeight: "bold",
    color: INK,
    subtitleColor: INK,
    subtitleFontSize: 12,
    offset: 8,
    frame: "group",
    limit: 0,
  },
  legend: {
    labelFontSize: 11,
    titleFontSize: 12,
    titleFontWeight: "normal",
    labelColor: INK,
    titleColor: INK,
    labelLimit: 0,
    titleLimit: 0,
    symbolSize: 70,
  },
} as const;

/** Panels in a row, at most `most`, such that the last row is as full as can be. */
export function panelColumns(panels: number, most: number): number {
  return Math.ceil(panels / Math.ceil(panels / most));
}

/** Schema of the specifications. */
export const SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json";
