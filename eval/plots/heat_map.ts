/**
 * Needle heat maps: one panel per configuration, one colour scale for all.
 *
 * @module
 */
import { parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { NeedleCell } from "../needle.ts";

/** Colours of scores 0, 0.5 and 1. */
const COLOURS = ["#F0496E", "#EBB839", "#0CD79F"];

/** Draws cells as panels of depth (down) against length (across); the mean stands in each panel's title. */
export function needleHeatMap(
  cells: readonly NeedleCell[],
  title: string,
): Promise<string> {
  const names = [...new Set(cells.map(({ configuration }) => configuration))];
  const panels = names.map((name) => {
    const own = cells.filter(({ configuration }) => configuration === name);
    const n = own.reduce((sum, cell) => sum + cell.n, 0);
    const mean = own.reduce((sum, cell) => sum + cell.score * cell.n, 0) / n;
    const lengths = [...new Set(own.map(({ length }) => length))].sort((a, b) =>
      a - b
    );
    return {
      title: {
        text: `${name}: ${(100 * mean).toFixed(1)} %`,
        fontSize: 13,
        anchor: "middle",
      },
      width: Math.max(120, 46 * lengths.length),
      height: 210,
      data: {
        values: own.map((cell) => ({
          ...cell,
          label: Math.round(100 * cell.score),
        })),
      },
      mark: { type: "rect", stroke: "white", strokeWidth: 1 },
      encoding: {
        x: {
          field: "length",
          type: "ordinal",
          title: "prompt length, tokens",
          axis: { labelAngle: 0 },
        },
        y: { field: "depth", type: "ordinal", title: "depth of the needle, %" },
        color: {
          field: "score",
          type: "quantitative",
          title: "score",
          scale: { domain: [0, 0.5, 1], range: COLOURS, clamp: true },
          legend: { format: ".1f", gradientLength: 180 },
        },
      },
    };
  });
  const spec = {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    background: "white",
    title: { text: title, fontSize: 15, anchor: "start", offset: 12 },
    concat: panels,
    columns: Math.min(3, panels.length),
    spacing: 28,
    resolve: { scale: { color: "shared" } },
    config: {
      font: "DejaVu Sans",
      axis: { labelFontSize: 11, titleFontSize: 12 },
      view: { stroke: null },
    },
  };
  return toSvg(spec as unknown as TopLevelSpec);
}

/** Renders a vega-lite specification without a browser. */
async function toSvg(spec: TopLevelSpec): Promise<string> {
  const view = new View(parse(compile(spec).spec), { renderer: "none" });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
