/**
 * Curves with bands: what the plots over budgets, bytes and layers share. Up to six series share one panel; more get
 * one panel each, with all others in grey behind them.
 *
 * @module
 */
import {
  BACKGROUND_COLOUR,
  coloursFor,
  CONFIG,
  INK,
  panelColumns,
  REFERENCE_COLOUR,
  SCHEMA,
  shapesFor,
} from "./_theme.ts";
import type { Plot } from "./render.ts";

/** A point of a curve with its band. */
export interface CurvePoint {
  x: number;
  y: number;
  low: number;
  high: number;
}

/** One curve. */
export interface Curve {
  name: string;
  points: readonly CurvePoint[];
}

/** A dashed horizontal line, and a point on it when `x` is given. */
export interface ReferenceLine {
  name: string;
  y: number;
  x?: number | undefined;
}

/** An axis. */
export interface Axis {
  title: string;
  /** Title where there is little room; default: the title. */
  shortTitle?: string;
  /** Ends of the axis; default: the data's. */
  domain?: [number, number];
  /** Places of the ticks; default: chosen by the renderer. */
  ticks?: number[];
  /** Whether to scale by powers of two. */
  log?: boolean;
  /** Expression or format for labels. */
  label: { format: string } | { labelExpr: string };
}

/** Everything about a plot of curves. */
export interface CurvePlot {
  curves: readonly Curve[];
  reference?: ReferenceLine | undefined;
  x: Axis;
  y: Axis;
  title?: string | undefined;
  /** What the bands are; stands below the title. */
  note?: string | undefined;
}

type Spec = { [key: string]: unknown };

/** Most curves in one panel; beyond this, bands hide each other. */
export const TOGETHER = 6;

function axisEncoding(
  field: string,
  axis: Axis,
  show: { title: string | null; labels: boolean },
): Spec {
  return {
    field,
    type: "quantitative",
    scale: {
      ...(axis.log === true ? { type: "log", base: 2 } : { zero: false }),
      ...(axis.domain === undefined
        ? { nice: false }
        : { domain: axis.domain }),
      ...(field === "x" ? { padding: 12 } : {}),
    },
    axis: {
      ...show,
      // Without a count of its own, Vega thins out the values.
      ...(axis.ticks === undefined
        ? {}
        : { values: axis.ticks, tickCount: axis.ticks.length }),
      ...axis.label,
      labelOverlap: true,
      grid: field === "y",
    },
  };
}

function rowsOf(curves: readonly Curve[]): Spec[] {
  return curves.flatMap(({ name, points }) =>
    points.map((point) => ({ ...point, name }))
  );
}

/** Bands of curves that are a single point, which an area cannot show. */
function singleBands(
  curves: readonly Curve[],
  x: Spec,
  y: Spec,
  color: Spec,
): Spec[] {
  const single = curves.filter(({ points }) => points.length === 1);
  if (single.length === 0) return [];
  return [{
    data: { values: rowsOf(single) },
    mark: { type: "rule", strokeWidth: 1.4 },
    encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color },
  }];
}

function referenceLayers(
  reference: ReferenceLine | undefined,
  named: boolean,
  x: Spec,
  y: Spec,
): Spec[] {
  if (reference === undefined) return [];
  const data = { values: [{ ...reference }] };
  const layers: Spec[] = [{
    data,
    mark: {
      type: "rule",
      color: REFERENCE_COLOUR,
      strokeDash: [5, 4],
      strokeWidth: 1.4,
    },
    encoding: { y },
  }];
  if (reference.x !== undefined) {
    layers.push({
      data,
      mark: {
        type: "point",
        shape: "cross",
        filled: true,
        opacity: 1,
        size: 90,
        color: REFERENCE_COLOUR,
      },
      encoding: { x, y },
    });
  }
  if (named) {
    layers.push({
      data,
      mark: {
        type: "text",
        align: "left",
        baseline: "middle",
        dx: 5,
        fontSize: 11,
        color: REFERENCE_COLOUR,
      },
      encoding: {
        x: { value: "width" },
        y,
        text: { field: "name" },
      },
    });
  }
  return layers;
}

function together(plot: CurvePlot, names: string[]): Spec {
  const x = axisEncoding("x", plot.x, { title: plot.x.title, labels: true });
  const y = axisEncoding("y", plot.y, { title: plot.y.title, labels: true });
  const order = { sort: null };
  const legend = {
    title: null,
    // Leaves room for the name at the end of the reference line.
    offset: 18 + (plot.reference?.name.length ?? 0) * 6.5,
    symbolOpacity: 1,
  };
  const color = {
    field: "name",
    type: "nominal",
    scale: { domain: names, range: coloursFor(names.length) },
    legend,
    ...order,
  };
  return {
    width: 460,
    height: 300,
    data: { values: rowsOf(plot.curves) },
    layer: [
      {
        mark: { type: "area", opacity: 0.13 },
        encoding: {
          x,
          y: { ...y, field: "low" },
          y2: { field: "high" },
          color,
        },
      },
      ...singleBands(plot.curves, x, y, color),
      ...referenceLayers(plot.reference, true, x, y),
      {
        mark: { type: "line", strokeWidth: 1.8 },
        encoding: { x, y, color },
      },
      {
        mark: { type: "point", filled: true, opacity: 1, size: 46 },
        encoding: {
          x,
          y,
          color,
          shape: {
            field: "name",
            type: "nominal",
            scale: { domain: names, range: shapesFor(names.length) },
            legend,
            ...order,
          },
        },
      },
    ],
  };
}

function apart(plot: CurvePlot, names: string[]): Spec {
  const columns = panelColumns(names.length, 4);
  const colours = coloursFor(names.length);
  const panels = plot.curves.map((curve, place): Spec => {
    const color = { value: colours[place] };
    const left = place % columns === 0;
    const lastRow = place >= Math.floor((names.length - 1) / columns) * columns;
    const x = axisEncoding("x", plot.x, {
      title: lastRow ? plot.x.shortTitle ?? plot.x.title : null,
      labels: place + columns >= names.length,
    });
    const y = axisEncoding("y", plot.y, {
      title: left ? plot.y.title : null,
      labels: left,
    });
    const own = { values: rowsOf([curve]) };
    return {
      width: 200,
      height: 140,
      layer: [
        // A title would stand at different heights, depending on what sticks out of the panel.
        {
          data: { values: [{ name: curve.name }] },
          mark: { type: "text", fontSize: 12, fontWeight: "bold", color: INK },
          encoding: {
            x: { value: 100 },
            y: { value: -12 },
            text: { field: "name" },
          },
        },
        {
          data: { values: rowsOf(plot.curves.filter((c) => c !== curve)) },
          mark: {
            type: "line",
            strokeWidth: 1,
            color: BACKGROUND_COLOUR,
          },
          encoding: { x, y, detail: { field: "name" } },
        },
        {
          data: own,
          mark: { type: "area", opacity: 0.2 },
          encoding: {
            x,
            y: { ...y, field: "low" },
            y2: { field: "high" },
            color,
          },
        },
        ...singleBands([curve], x, y, color),
        ...referenceLayers(
          plot.reference,
          place % columns === columns - 1,
          x,
          y,
        ),
        {
          data: own,
          mark: { type: "line", strokeWidth: 2 },
          encoding: { x, y, color },
        },
        {
          data: own,
          mark: { type: "point", filled: true, opacity: 1, size: 30 },
          encoding: { x, y, color },
        },
      ],
    };
  });
  return { columns, spacing: { row: 16, column: 20 }, concat: panels };
}

/** Builds the plot. Throws a RangeError when there is nothing to draw. */
export function curvePlot(plot: CurvePlot): Plot {
  const names = plot.curves.map(({ name }) => name);
  const empty = plot.curves.find(({ points }) => points.length === 0);
  if (names.length === 0 || empty !== undefined) {
    throw new RangeError(
      `Cannot draw curves as each must hold points: ${
        empty === undefined ? "0 curves" : `"${empty.name}" holds 0`
      }`,
    );
  }
  for (const { name, points } of plot.curves) {
    for (const point of points) {
      const whole = Object.values(point).every(Number.isFinite);
      if (whole && (plot.x.log !== true || point.x > 0)) continue;
      throw new RangeError(
        `Cannot draw curves as values must be finite, and above 0 on an axis of powers: "${name}" holds ${
          JSON.stringify(point)
        }`,
      );
    }
  }
  if (new Set(names).size < names.length) {
    throw new RangeError(
      `Cannot draw curves as their names must differ: names are ${
        names.join(", ")
      }`,
    );
  }
  const heading = plot.title === undefined && plot.note === undefined ? {} : {
    title: {
      ...(plot.title === undefined
        ? { text: plot.note, fontSize: 12, fontWeight: "normal" }
        : { text: plot.title, subtitle: plot.note ?? "", fontSize: 15 }),
      ...(names.length > TOGETHER
        ? { anchor: "middle", frame: "bounds" }
        : { anchor: "start" }),
      offset: 12,
    },
  };
  return {
    spec: {
      $schema: SCHEMA,
      ...heading,
      ...(names.length > TOGETHER ? apart(plot, names) : together(plot, names)),
      config: CONFIG,
    },
  };
}

/**
 * Axis of scores: 0 to 1 shown in percent, from 0 unless all scores are high.
 *
 * @param title Title of the axis.
 * @param values Everything that must be visible.
 */
export function scoreAxis(title: string, values: readonly number[]): Axis {
  const least = Math.min(...values);
  const low = least < 0.35 ? 0 : Math.floor((least - 0.01) * 20) / 20;
  const high = Math.ceil((Math.max(...values) + 0.005) * 20) / 20;
  return {
    title,
    domain: [low, Math.min(high, 1)],
    label: { labelExpr: "format(100 * datum.value, '.3~g')" },
  };
}
