/**
 * Needle in a haystack: where in the context, and at which length, does a method still find the needle?
 *
 * @module
 */
import { CONFIG, panelColumns, SCHEMA } from "./_theme.ts";
import type { Plot } from "./render.ts";

/** One score of a heat map; several of one place are averaged. */
export interface NeedleScore {
  /** Length of the context in tokens. */
  length: number;
  /** Depth of the needle in percent; 0 is the start of the context. */
  depth: number;
  /** Score, 0 to 1. */
  score: number;
}

/** The scores of one method. */
export interface NeedlePanel {
  /** Name of the configuration. */
  title: string;
  /** Its scores. Places without a score stay blank. */
  scores: readonly NeedleScore[];
}

/** Options of {@linkcode needleHeatMap}. */
export interface NeedleOptions {
  /** Heading above all panels. */
  title?: string;
  /** Panels in a row. Default: up to 4 small ones or 2 large ones, such that rows are equally full. */
  columns?: number;
  /** Whether scores are printed in the cells. Default: no. */
  values?: boolean;
}

/** Colours of scores 0, 0.5 and 1, those of the field's usual heat maps. */
const SCALE = ["#F0496E", "#EBB839", "#0CD79F"];

const ascending = (a: number, b: number): number => a - b;

/** At most `most` of the values, evenly spread, the first among them. */
function spread(values: readonly number[], most: number): number[] {
  const step = Math.ceil(values.length / most);
  return values.filter((_, i) => i % step === 0);
}

/**
 * Heat maps of several methods side by side: rows are depths, columns are lengths, the colour scale from 0 to 1 is
 * shared, and each panel's title carries the mean over its places.
 *
 * @param panels One panel for each method.
 * @param options Heading, layout, printed values.
 * @throws RangeError without panels and for a panel without scores.
 */
export function needleHeatMap(
  panels: readonly NeedlePanel[],
  options: NeedleOptions = {},
): Plot {
  if (panels.length === 0) {
    throw new RangeError(
      "Cannot draw heat map as there must be panels: 0 panels",
    );
  }
  const empty = panels.find(({ scores }) => scores.length === 0);
  if (empty !== undefined) {
    throw new RangeError(
      `Cannot draw heat map as every panel must hold scores: "${empty.title}" holds 0`,
    );
  }
  const all = panels.flatMap(({ scores }) => scores);
  const lengths = [...new Set(all.map((s) => s.length))].sort(ascending);
  const depths = [...new Set(all.map((s) => s.depth))].sort(ascending);
  const width = Math.min(620, Math.max(240, lengths.length * 30));
  const height = Math.min(320, Math.max(150, depths.length * 22));
  const columns = options.columns ??
    panelColumns(panels.length, width > 400 ? 2 : 4);
  const shown = spread(lengths, 16);
  const roomy = width / shown.length > 45;
  const stroke = lengths.length > 32 ? 0.25 : 0.75;

  const drawn = panels.map(({ title, scores }, place) => {
    const cells = [
      ...Map.groupBy(scores, (s) => `${s.length} ${s.depth}`).values(),
    ].map((group) => ({
      length: group[0]?.length,
      depth: group[0]?.depth,
      score: group.reduce((sum, s) => sum + s.score, 0) / group.length,
    }));
    const mean = cells.reduce((sum, c) => sum + c.score, 0) / cells.length;
    const left = place % columns === 0;
    const bottom = place + columns >= panels.length;
    const lastRow =
      place >= Math.floor((panels.length - 1) / columns) * columns;
    const x = {
      field: "length",
      type: "ordinal",
      scale: { domain: lengths },
      axis: {
        title: lastRow ? "Context length (tokens)" : null,
        values: shown,
        labels: bottom,
        labelAngle: roomy ? 0 : -45,
        format: ",",
      },
    };
    const y = {
      field: "depth",
      type: "ordinal",
      scale: { domain: depths },
      axis: {
        title: left ? "Needle depth (%)" : null,
        values: spread(depths, 14),
        labels: left,
        format: ".3~g",
      },
    };
    return {
      title: { text: title, subtitle: `mean ${mean.toFixed(3)}` },
      width,
      height,
      data: { values: cells },
      layer: [
        {
          mark: { type: "rect", stroke: "white", strokeWidth: stroke },
          encoding: {
            x,
            y,
            color: {
              field: "score",
              type: "quantitative",
              scale: {
                domain: [0, 0.5, 1],
                range: SCALE,
                interpolate: "rgb",
                clamp: true,
              },
              legend: {
                title: "Score",
                gradientLength: Math.min(height, 200),
                values: [0, 0.25, 0.5, 0.75, 1],
                format: ".2~f",
              },
            },
          },
        },
        ...(options.values === true
          ? [{
            mark: { type: "text", fontSize: 9, color: "#1a1a1a" },
            encoding: {
              x,
              y,
              text: { field: "score", type: "quantitative", format: ".2f" },
            },
          }]
          : []),
      ],
    };
  });
  return {
    spec: {
      $schema: SCHEMA,
      ...(options.title === undefined ? {} : {
        title: {
          text: options.title,
          anchor: "middle",
          frame: "bounds",
          fontSize: 15,
          offset: 18,
        },
      }),
      columns,
      spacing: { row: 20, column: 20 },
      concat: drawn,
      resolve: { scale: { color: "shared" } },
      config: CONFIG,
    },
  };
}
