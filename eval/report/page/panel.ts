/**
 * One configuration's text and strip, and how they are painted. Part of the page: it runs in the browser.
 *
 * @module
 */
import type { View, ViewConfiguration } from "../../view/types.ts";
import { channels, styleOf } from "./dom.ts";
import type { LayerCounts } from "./kept.ts";

/** A panel: one configuration. */
export interface Panel {
  configuration: ViewConfiguration;
  root: HTMLElement;
  text: HTMLElement;
  summary: HTMLElement;
  map: HTMLCanvasElement;
  spans: HTMLSpanElement[];
  /** Class of a span beside its shade. */
  base: string[];
  /** Shade that each span has, and the one it should have. */
  shades: Int8Array;
  wanted: Int8Array;
  /** Counts of the moment and head that were shown last. */
  counts?: { generated: number; head: number; found: LayerCounts };
}

/** Added to the shade of a token that no chosen head holds. */
export const GONE = 16;

/** Draws the strip above the text: a column per position, a row per layer; layers that are not chosen are paler. */
export function drawStrip(
  { map }: Panel,
  { layers, of }: LayerCounts,
  view: View,
  chosen: number,
): void {
  const n = view.tokens.length;
  const width = Math.min(n, 1024);
  const each = Math.max(2, Math.min(8, Math.floor(72 / layers.length)));
  map.width = width;
  map.height = layers.length * each + 4;
  const paper = map.getContext("2d");
  if (paper === null) return;
  const image = paper.createImageData(width, map.height);
  const pixels = new Uint32Array(image.data.buffer);
  const from = channels(styleOf("--map-0"));
  const to = channels(styleOf("--map-1"));
  const colours = Array.from(
    { length: 65 },
    (_, i) => pixelOf(from.map((c, k) => c + (to[k]! - c) * i / 64)),
  );
  for (const [layer, counts] of layers.entries()) {
    const dim = chosen >= 0 && chosen !== layer;
    for (let x = 0; x < width; x++) {
      const first = Math.floor(x * n / width);
      const end = Math.max(first + 1, Math.floor((x + 1) * n / width));
      let most = 0;
      for (let i = first; i < end; i++) most = Math.max(most, counts[i]!);
      const colour = colours[Math.ceil((dim ? 20 : 64) * most / of)]!;
      for (let y = 0; y < each; y++) {
        pixels[(layer * each + y) * width + x] = colour;
      }
    }
  }
  const mark = pixelOf(channels(styleOf("--mark")));
  for (const [first, end] of view.highlights) {
    const last = Math.ceil(Math.max(first + 1, end) * width / n);
    for (let x = Math.floor(first * width / n); x < last; x++) {
      for (let y = 1; y <= 3; y++) {
        pixels[(layers.length * each + y) * width + x] = mark;
      }
    }
  }
  paper.putImageData(image, 0, 0);
}

/** Tokens of a panel that are in sight, and some around them. */
export function visible({ text, spans }: Panel): [first: number, end: number] {
  const below = (top: number): number => {
    let low = 0, high = spans.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans[middle]!.offsetTop < top) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const shown = below(text.scrollTop - 60);
  return [
    Math.max(0, shown - 10),
    below(text.scrollTop + text.clientHeight + 60) + 10,
  ];
}

/** Gives the spans of a range the shades they should have. */
export function paint(
  { spans, base, shades, wanted }: Panel,
  [first, end]: readonly [number, number],
): void {
  const last = Math.min(spans.length, Math.ceil(end));
  for (let i = Math.floor(first); i < last; i++) {
    const shade = wanted[i]!;
    if (shades[i] === shade) continue;
    shades[i] = shade;
    spans[i]!.className = shade >= GONE
      ? `${base[i]}k${shade - GONE} gone`
      : `${base[i]}k${shade}`;
  }
}

/** A pixel as canvases keep it in memory. */
function pixelOf([red, green, blue]: readonly number[]): number {
  return (255 << 24 | blue! << 16 | green! << 8 | red!) >>> 0;
}
