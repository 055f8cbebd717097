/**
 * Accuracy against what it costs: the budget asked for, and the bytes really held.
 *
 * @module
 */
import { curvePlot, scoreAxis } from "./_curves.ts";
import type { Plot } from "./render.ts";

/** A score with its interval, 0 to 1. */
export interface ScorePoint {
  /** Mean score. */
  score: number;
  /** Lower end of its interval. */
  low: number;
  /** Upper end of its interval. */
  high: number;
}

/** A score at a budget. */
export interface BudgetPoint extends ScorePoint {
  /** Tokens kept per layer and KV head. */
  budget: number;
}

/** A score and the bytes it took. */
export interface BytesPoint extends ScorePoint {
  /** Bytes that the cache held after prefill, mean over the examples. */
  residentBytes: number;
}

/** The points of one method. */
export interface ScoreSeries<Point> {
  /** Name of the method. */
  name: string;
  /** Its points, in any order. */
  points: readonly Point[];
}

/** Options of the two plots. */
export interface ScoreCurveOptions<Point> {
  /** Heading. */
  title?: string;
  /** Title of the score axis. Default: `Accuracy (%)`. */
  scoreTitle?: string;
  /** What the bands are, below the heading. Default: `Bands: 95 % bootstrap intervals`. */
  note?: string;
  /** The uncompressed run, drawn as a dashed line. */
  reference?: { name: string } & Point;
}

const NOTE = "Bands: 95 % bootstrap intervals";

/**
 * Accuracy against budget, one curve for each method; more than six methods get a panel each.
 *
 * @param series Points of each method.
 * @param options Heading, titles, reference.
 * @throws RangeError when there is nothing to draw or a name occurs twice.
 */
export function accuracyAgainstBudget(
  series: readonly ScoreSeries<BudgetPoint>[],
  options: ScoreCurveOptions<ScorePoint> = {},
): Plot {
  const { reference, scoreTitle = "Accuracy (%)", note = NOTE } = options;
  const points = series.flatMap((s) => s.points);
  const ticks = [...new Set(points.map(({ budget }) => budget))]
    .sort((a, b) => a - b);
  return curvePlot({
    curves: toCurves(series, ({ budget }) => budget),
    reference: reference && { name: reference.name, y: reference.score },
    x: {
      title: "Budget (tokens per layer and KV head)",
      shortTitle: "Budget (tokens)",
      log: true,
      ticks,
      label: { format: ",d" },
    },
    y: scoreAxis(scoreTitle, spanOf(points, reference)),
    title: options.title,
    note,
  });
}

/**
 * Accuracy against the bytes that the cache really held, one curve for each method; more than six methods get a panel
 * each. The reference appears as a point as well.
 *
 * @param series Points of each method.
 * @param options Heading, titles, reference.
 * @throws RangeError when there is nothing to draw or a name occurs twice.
 */
export function accuracyAgainstBytes(
  series: readonly ScoreSeries<BytesPoint>[],
  options: ScoreCurveOptions<BytesPoint> = {},
): Plot {
  const { reference, scoreTitle = "Accuracy (%)", note = NOTE } = options;
  const points = series.flatMap((s) => s.points);
  const bytes = [...points, ...(reference ? [reference] : [])]
    .map(({ residentBytes }) => residentBytes);
  return curvePlot({
    curves: toCurves(series, ({ residentBytes }) => residentBytes),
    reference: reference &&
      { name: reference.name, y: reference.score, x: reference.residentBytes },
    x: {
      title: "Resident cache after prefill",
      shortTitle: "Resident cache",
      log: true,
      domain: [Math.min(...bytes), Math.max(...bytes)],
      ticks: powersOfTwo(Math.min(...bytes), Math.max(...bytes)),
      label: { labelExpr: BYTES_LABEL },
    },
    y: scoreAxis(scoreTitle, spanOf(points, reference)),
    title: options.title,
    note,
  });
}

/** Bytes with a binary unit, in the language of the renderer. */
const BYTES_LABEL = ["GiB", "MiB", "KiB"].map((unit, i) => {
  const size = 1024 ** (3 - i);
  return `datum.value >= ${size} ? format(datum.value / ${size}, '.3~r') + ' ${unit}' : `;
}).join("") + "datum.value + ' B'";

function toCurves<Point extends ScorePoint>(
  series: readonly ScoreSeries<Point>[],
  x: (point: Point) => number,
) {
  return series.map(({ name, points }) => ({
    name,
    points: points.map((point) => ({
      x: x(point),
      y: point.score,
      low: point.low,
      high: point.high,
    })).sort((a, b) => a.x - b.x),
  }));
}

function spanOf(
  points: readonly ScorePoint[],
  reference: ScorePoint | undefined,
): number[] {
  return [
    ...points.flatMap(({ low, high, score }) => [low, high, score]),
    ...(reference === undefined ? [] : [reference.score]),
  ];
}

/** Powers of two in a range, thinned to eight at most; the ends of a range that holds fewer than two. */
function powersOfTwo(least: number, most: number): number[] {
  const first = Math.ceil(Math.log2(least));
  const last = Math.floor(Math.log2(most));
  const step = Math.max(1, Math.ceil((last - first + 1) / 8));
  const powers: number[] = [];
  for (let e = first; e <= last; e += step) powers.push(2 ** e);
  return powers.length > 1 ? powers : [...new Set([least, most])];
}
