/**
 * One configuration's text and strip, and how they are painted. Part of the page: it runs in the browser.
 *
 * @module
 */
import type { View, ViewConfiguration } from "../../view/types.ts";
import { channels, make, styleOf } from "./dom.ts";
import type { LayerCounts } from "./kept.ts";

/** A panel: one configuration. */
export interface Panel {
  configuration: ViewConfiguration;
  root: HTMLElement;
  text: ScrolledText;
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

/** Colours of strips, as pixels. */
export interface StripColours {
  /** From none of the heads to all of them. */
  shares: Uint32Array;
  mark: number;
}

/** The colours that strips have under the page's present theme. */
export function stripColours(): StripColours {
  const from = channels(styleOf("--map-0"));
  const to = channels(styleOf("--map-1"));
  return {
    shares: Uint32Array.from(
      { length: 65 },
      (_, i) => pixelOf(from.map((c, k) => c + (to[k]! - c) * i / 64)),
    ),
    mark: pixelOf(channels(styleOf("--mark"))),
  };
}

/** What a strip shows. */
export interface Strip {
  found: LayerCounts;
  view: View;
  /** Layer that is looked at; -1 is all. */
  chosen: number;
  colours: StripColours;
}

/** Draws the strip above the text: a column per position, a row per layer; layers that are not chosen are paler. */
export function drawStrip(
  { map }: Panel,
  { found: { layers, of }, view, chosen, colours }: Strip,
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
  const firsts = Uint32Array.from(
    { length: width + 1 },
    (_, x) => Math.floor(x * n / width),
  );
  for (const [layer, counts] of layers.entries()) {
    const dim = chosen >= 0 && chosen !== layer;
    const line = layer * each * width;
    for (let x = 0; x < width; x++) {
      let most = 0;
      for (let i = firsts[x]!; i < firsts[x + 1]!; i++) {
        if (counts[i]! > most) most = counts[i]!;
      }
      pixels[line + x] = colours
        .shares[Math.ceil((dim ? 20 : 64) * most / of)]!;
    }
    for (let y = 1; y < each; y++) {
      pixels.copyWithin(line + y * width, line, line + width);
    }
  }
  for (const [first, end] of view.highlights) {
    const last = Math.ceil(Math.max(first + 1, end) * width / n);
    for (let x = Math.floor(first * width / n); x < last; x++) {
      for (let y = 1; y <= 3; y++) {
        pixels[(layers.length * each + y) * width + x] = colours.mark;
      }
    }
  }
  paper.putImageData(image, 0, 0);
}

/**
 * A text in a frame that scrolls. Browsers paint whatever could soon be scrolled into a frame; of thousands of tokens in
 * six frames that is far more than what is in sight. So the frame scrolls an empty length, and the text stays where it is,
 * in a box as large as the frame that shows its part.
 */
export class ScrolledText {
  /** What scrolls; has the focus. */
  readonly frame: HTMLElement;
  readonly #box: HTMLElement;
  readonly #length = make("div", { "aria-hidden": "true" });
  /** Where the box was put last, so that its event is not taken for a move of the browser's own. */
  #put = 0;

  /** Puts a text into a frame; `moved` is called after it has been scrolled. */
  constructor(frame: HTMLElement, text: readonly Node[], moved: () => void) {
    this.frame = frame;
    this.#box = make("div", {
      class: "in-sight",
      // Finding words, or selecting them, scrolls the box.
      scroll: () => {
        if (this.#box.scrollTop !== this.#put) this.top = this.#box.scrollTop;
      },
    });
    this.#box.append(...text);
    frame.append(this.#box, this.#length);
    frame.addEventListener("scroll", () => {
      this.#putBox(frame.scrollTop);
      moved();
    });
    new ResizeObserver(() => this.fit()).observe(this.#box);
  }

  /** Pixels of the text above the frame. */
  get top(): number {
    return this.#box.scrollTop;
  }

  set top(top: number) {
    this.frame.scrollTop = top;
    this.#putBox(this.frame.scrollTop);
  }

  /** Height of the frame, pixels. */
  get height(): number {
    return this.#box.clientHeight;
  }

  /** Makes the frame scroll as far as the text goes; needed after it came to light. */
  fit(): void {
    const rest = this.#box.scrollHeight - this.#box.clientHeight;
    this.#length.style.height = `${rest}px`;
  }

  #putBox(top: number): void {
    this.#box.scrollTop = top;
    this.#put = this.#box.scrollTop;
  }
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
  return [
    Math.max(0, below(text.top - 60) - 10),
    below(text.top + text.height + 60) + 10,
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
