/**
 * Attention maps of one layer side by side: queries down, keys across.
 *
 * @module
 */
import { encodePng } from "./_png.ts";
import { CONFIG, INK, panelColumns, SCHEMA } from "./_theme.ts";
import type { Plot } from "./render.ts";

/** What to draw. */
export interface AttentionPicture {
  /** Heading. */
  title: string;
  /** Tokens that the maps span. */
  tokens: number;
  /** Blocks of a side. */
  blocks: number;
  /** One map each. */
  panels: readonly AttentionPanel[];
}

/** One map. */
export interface AttentionPanel {
  /** Heading. */
  title: string;
  /** Probabilities `[blocks, blocks]`, query block before key block. */
  values: ArrayLike<number>;
}

/** Colours from nothing over a hundredth and more to all, on a logarithmic scale from `LEAST` to 1. */
const STOPS = ["#f4f6fa", "#3d8fd9", "#0a1f44"];
const LEAST = 1e-5;

/** Side of a panel, and the least number of pixels of its image. */
const SIDE = 220, PIXELS = 512;

function colour(p: number): number[] {
  const share = p > LEAST ? 1 - Math.log10(p) / Math.log10(LEAST) : 0;
  const at = 2 * Math.min(1, share);
  const [from, to] = STOPS.slice(at < 1 ? 0 : 1)
    .map((text) => parseInt(text.slice(1), 16));
  const part = at < 1 ? at : at - 1;
  return [16, 8, 0].map((shift) => {
    const a = from! >> shift & 255, b = to! >> shift & 255;
    return Math.round(a + (b - a) * part);
  });
}

/** The map as a picture in an address; keys after the query are left out. */
async function imageOf(
  { values }: AttentionPanel,
  blocks: number,
): Promise<string> {
  // Whole pixels per block, so that no viewer has to invent values in between.
  const zoom = Math.ceil(PIXELS / blocks);
  const side = blocks * zoom;
  const pixels = new Uint8Array(4 * side * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const row = Math.floor(y / zoom), column = Math.floor(x / zoom);
      if (column > row) continue;
      pixels.set(
        [...colour(values[row * blocks + column] ?? 0), 255],
        4 * (y * side + x),
      );
    }
  }
  const png = await encodePng(pixels, side);
  return `data:image/png;base64,${png.toBase64()}`;
}

/**
 * Draws attention maps; the colours are logarithmic.
 *
 * @param picture Maps of equal size.
 * @throws RangeError without panels and for a panel of another size.
 */
export async function attentionPicture(
  picture: AttentionPicture,
): Promise<Plot> {
  const { title, tokens, blocks, panels } = picture;
  const wrong = panels.find(({ values }) => values.length !== blocks ** 2);
  if (panels.length === 0 || wrong !== undefined) {
    throw new RangeError(
      `Cannot draw attention as there must be panels of ${
        blocks ** 2
      } values: ${
        wrong === undefined
          ? "0 panels"
          : `"${wrong.title}" holds ${wrong.values.length}`
      }`,
    );
  }
  const columns = panelColumns(panels.length, 4);
  const images = await Promise.all(panels.map((one) => imageOf(one, blocks)));
  const scale = { domain: [0, tokens], nice: false };
  const concat = panels.map((panel, place) => {
    const left = place % columns === 0;
    const bottom = place + columns >= panels.length;
    const axis = {
      format: ",d",
      tickCount: 4,
      grid: false,
      labelOverlap: true,
    };
    return {
      width: SIDE,
      height: SIDE,
      data: { values: [{ key: 0, query: 0, end: tokens, p: LEAST }] },
      layer: [
        // A title would stand at different heights, depending on what sticks out of the panel.
        {
          mark: { type: "text", fontSize: 12, fontWeight: "bold", color: INK },
          encoding: {
            x: { value: SIDE / 2 },
            y: { value: -12 },
            text: { value: panel.title },
          },
        },
        {
          mark: {
            type: "image",
            url: images[place],
            width: SIDE,
            height: SIDE,
            align: "left",
            baseline: "top",
            aspect: false,
          },
          encoding: {
            x: {
              field: "key",
              type: "quantitative",
              scale,
              axis: {
                ...axis,
                title: bottom ? "Key (tokens)" : null,
                labels: bottom,
              },
            },
            y: {
              field: "query",
              type: "quantitative",
              scale: { ...scale, reverse: true },
              axis: {
                ...axis,
                title: left ? "Query (tokens)" : null,
                labels: left,
              },
            },
          },
        },
        {
          // Carries the legend of the colours; a point without size is not seen.
          mark: { type: "point", opacity: 0, size: 0 },
          encoding: {
            color: {
              field: "p",
              type: "quantitative",
              scale: {
                type: "log",
                domain: [LEAST, 1],
                range: STOPS,
                interpolate: "rgb",
              },
              legend: {
                title: "Probability",
                values: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1],
                labelExpr: "format(100 * datum.value, '~r') + ' %'",
              },
            },
          },
        },
      ],
    };
  });
  return {
    spec: {
      $schema: SCHEMA,
      title: {
        text: title,
        anchor: "middle",
        frame: "bounds",
        fontSize: 15,
        offset: 18,
      },
      columns,
      spacing: { row: 24, column: 24 },
      concat,
      resolve: { scale: { color: "shared" } },
      config: CONFIG,
    },
  };
}
