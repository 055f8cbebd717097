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
  /** Whether curves are drawn as steps. */
  step?: boolean;
}

type Spec = { [key: string]: unknown };

/** Most curves in one panel; beyond this, bands hide each other. */
const TOGETHER = 6;

function axisEncoding(field: string, axis: Axis, shown = true): Spec {
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
      title: shown ? axis.title : null,
      labels: shown,
      ...(axis.ticks === undefined ? {} : { values: axis.ticks }),
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
  const x = axisEncoding("x", plot.x);
  const y = axisEncoding("y", plot.y);
  const interpolate = plot.step === true ? "step" : "linear";
  const order = { sort: null };
  const legend = {
    title: null,
    // Leaves room for the name at the end of the reference line.
    offset: 18 + (plot.reference?.name.length ?? 0) * 7,
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
        mark: { type: "area", opacity: 0.13, interpolate },
        encoding: {
          x,
          y: { ...y, field: "low" },
          y2: { field: "high" },
          color,
        },
      },
      ...referenceLayers(plot.reference, true, x, y),
      {
        mark: { type: "line", strokeWidth: 1.8, interpolate },
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
  const interpolate = plot.step === true ? "step" : "linear";
  const panels = plot.curves.map((curve, place): Spec => {
    const color = { value: colours[place] };
    const x = axisEncoding("x", plot.x, place + columns >= names.length);
    const y = axisEncoding("y", plot.y, place % columns === 0);
    const own = { values: rowsOf([curve]) };
    return {
      title: { text: curve.name, fontSize: 12, offset: 4 },
      width: 200,
      height: 140,
      layer: [
        {
          data: { values: rowsOf(plot.curves.filter((c) => c !== curve)) },
          mark: {
            type: "line",
            strokeWidth: 1,
            color: BACKGROUND_COLOUR,
            interpolate,
          },
          encoding: { x, y, detail: { field: "name" } },
        },
        {
          data: own,
          mark: { type: "area", opacity: 0.2, interpolate },
          encoding: {
            x,
            y: { ...y, field: "low" },
            y2: { field: "high" },
            color,
          },
        },
        ...referenceLayers(
          plot.reference,
          place % columns === columns - 1 || place === names.length - 1,
          x,
          y,
        ),
        {
          data: own,
          mark: { type: "line", strokeWidth: 2, interpolate },
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
  return { columns, spacing: { row: 18, column: 18 }, concat: panels };
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
  if (new Set(names).size < names.length) {
    throw new RangeError(
      `Cannot draw curves as their names must differ: names are ${
        names.join(", ")
      }`,
    );
  }
  const heading = plot.title === undefined && plot.note === undefined ? {} : {
    title: {
      text: plot.title ?? "",
      ...(plot.note === undefined ? {} : { subtitle: plot.note }),
      anchor: names.length > TOGETHER ? "middle" : "start",
      fontSize: 15,
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
    domain: [low, Math.min(high, 1.02)],
    label: { labelExpr: "format(100 * datum.value, '.3~g')" },
  };
}
