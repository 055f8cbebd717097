/**
 * Where a method spends its budget: the rows it keeps in each layer.
 *
 * @module
 */
import { curvePlot, TOGETHER } from "./_curves.ts";
import type { Plot } from "./render.ts";

/** What one configuration kept. */
export interface LayerRows {
  /** Name of the configuration. */
  name: string;
  /** Rows held after prefill, `[layers][stored heads]`; means over examples are welcome. */
  rows: readonly (readonly number[])[];
}

/** Options of {@linkcode rowsPerLayer}. */
export interface LayerRowsOptions {
  /** Heading. */
  title?: string;
  /** The budget asked for, drawn as a dashed line. */
  budget?: number;
}

/**
 * Rows kept per layer: the line is the mean over heads, the band reaches from the head with the fewest rows to the one
 * with the most. More than six configurations get a panel each.
 *
 * @param configurations What each configuration kept.
 * @param options Heading and budget.
 * @throws RangeError when there is nothing to draw or a name occurs twice.
 */
export function rowsPerLayer(
  configurations: readonly LayerRows[],
  options: LayerRowsOptions = {},
): Plot {
  const { budget, title } = options;
  const curves = configurations.map(({ name, rows }) => ({
    name,
    points: rows.map((heads, layer) => ({
      x: layer,
      y: heads.reduce((sum, n) => sum + n, 0) / heads.length,
      low: Math.min(...heads),
      high: Math.max(...heads),
    })),
  }));
  const layers = Math.max(0, ...configurations.map(({ rows }) => rows.length));
  const most = Math.max(
    budget ?? 0,
    ...curves.flatMap(({ points }) => points.map(({ high }) => high)),
  );
  const step = Math.ceil(layers / (curves.length > TOGETHER ? 9 : 17));
  return curvePlot({
    curves,
    reference: budget === undefined ? undefined : { name: "budget", y: budget },
    x: {
      title: "Layer",
      domain: [0, Math.max(1, layers - 1)],
      ticks: Array.from(
        { length: Math.ceil(layers / step) },
        (_, i) => i * step,
      ),
      // An integer format would make Vega count fewer ticks than there are layers.
      label: { labelExpr: "format(datum.value, 'd')" },
    },
    y: {
      title: "Rows kept per head",
      domain: [0, Math.max(1, most * 1.05)],
      label: { format: ",d" },
    },
    title,
    note: "Line: mean over heads; band: fewest to most",
  });
}
