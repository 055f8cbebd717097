/**
 * What the generator hands to the page's charts. Apart from the page's program, so that what the generator imports needs
 * no types of a browser.
 *
 * @module
 */

/** A point of a curve. */
export interface ChartPoint {
  x: number;
  y: number;
  low: number;
  high: number;
  /** What the hint says. */
  lines: string[];
}

/** Curves over powers of two. */
export interface Chart {
  title: string;
  xTitle: string;
  yTitle: string;
  series: { name: string; points: ChartPoint[] }[];
  reference: { name: string; y: number };
  ticks: { x: number; text: string }[];
}

/** Scores by length and depth of one configuration. */
export interface HeatPanel {
  title: string;
  /** Absent for configurations that have none. */
  budget?: number;
  cells: { length: number; depth: number; score: number; n: number }[];
}

/** Pictures of a section, as the generator writes them. */
export interface SectionPictures {
  charts: Chart[];
  heatMaps: { title: string; panels: HeatPanel[] }[];
}
