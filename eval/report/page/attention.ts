/**
 * Attention maps. Part of the page: it runs in the browser.
 *
 * @module
 */
import { type AttentionView, decodeProbability } from "../../view/types.ts";
import type { View } from "../../view/types.ts";
import {
  channels,
  count,
  draw,
  make,
  percent,
  selectBox,
  styleOf,
} from "./dom.ts";
import { hideHint, showHint } from "./hint.ts";

/** Steps of the colours. */
const STEPS = 256;

/** Round numbers from 0 to `n`, three to seven of them. */
function roundSteps(n: number): number[] {
  const power = 10 ** Math.floor(Math.log10(n / 3));
  const step = [5, 2, 1].map((k) => k * power).find((k) => n / k >= 3) ?? 1;
  return Array.from({ length: Math.floor(n / step) + 1 }, (_, i) => i * step);
}

/** Attention of one layer as a picture: queries down, keys across. */
export class AttentionMap {
  readonly #view: View;
  readonly #attention: AttentionView;
  readonly #canvas: HTMLCanvasElement;
  readonly #ends: SVGSVGElement;
  #layer = 0;
  #head = -1;
  #scale: "log" | "linear" = "log";
  #values = new Float64Array(0);
  #cursor: { row: number; column: number };

  /** Builds the map into `root`. */
  constructor(root: HTMLElement, view: View, attention: AttentionView) {
    this.#view = view;
    this.#attention = attention;
    this.#cursor = { row: attention.blocks - 1, column: 0 };
    const choose = (act: (value: string) => void) => (value: string) => {
      act(value);
      this.update();
    };
    const layer = selectBox(
      "Layer",
      attention.layers.map((layer, i) => [String(i), String(layer)] as const),
      choose((value) => this.#layer = Number(value)),
    );
    this.#layer = attention.layers.length >> 1;
    layer.select.value = String(this.#layer);
    const head = selectBox(
      "Query head",
      [
        ["-1", "mean over heads"],
        ...Array.from(
          { length: view.model.queryHeads },
          (_, i) => [String(i), String(i)] as const,
        ),
      ],
      choose((value) => this.#head = Number(value)),
    );
    const scale = selectBox("Colours", [
      ["log", "logarithmic"],
      ["linear", "linear"],
    ], choose((value) => this.#scale = value as "log" | "linear"));
    this.#canvas = make("canvas", {
      width: attention.blocks,
      height: attention.blocks,
      class: "attention",
      role: "img",
      tabindex: 0,
      "aria-label":
        "Attention map, queries down, keys across; arrow keys go from block to block",
      mousemove: (event) => this.#hover(event as MouseEvent),
      mouseleave: hideHint,
      blur: hideHint,
      keydown: (event) => this.#key(event as KeyboardEvent),
    });
    this.#ends = this.#axes();
    root.append(
      make(
        "div",
        { class: "controls no-print" },
        layer.box,
        head.box,
        scale.box,
      ),
      make(
        "p",
        { class: "note" },
        `A point is the mean probability that ${
          attention.block === 1
            ? "a query gives to a key"
            : `the queries of ${attention.block} tokens give to the keys of ${attention.block} tokens together`
        }; each line of points adds up to 100 %.`,
      ),
      make(
        "div",
        { class: "attention-frame" },
        this.#ends,
        this.#canvas,
        make(
          "div",
          { class: "attention-scale" },
          make("span", {}, "100 %"),
          make("span", { class: "ramp", "aria-hidden": "true" }),
          make("span", {}, "0 %"),
        ),
      ),
    );
    this.update();
  }

  #axes(): SVGSVGElement {
    const n = this.#view.tokens.length;
    const ticks = roundSteps(n).map((tick) => tick / n);
    return draw(
      "svg",
      {
        class: "attention-axes",
        viewBox: "0 0 600 600",
        "aria-hidden": "true",
      },
      ...ticks.flatMap((share) => [
        draw("text", {
          // The last number ends where the picture does.
          x: share > 0.95 ? 598 : 60 + 530 * share,
          y: 590,
          "text-anchor": share === 0
            ? "start"
            : share > 0.95
            ? "end"
            : "middle",
        }, count(share * n)),
        draw("text", {
          x: 54,
          y: 40 + 530 * share + (share === 0 ? 12 : 5),
          "text-anchor": "end",
        }, count(share * n)),
      ]),
      draw("text", { x: 60, y: 26 }, "keys → (tokens)"),
      draw("text", {
        transform: "translate(14 310) rotate(-90)",
        "text-anchor": "middle",
      }, "← queries (tokens)"),
      ...this.#view.highlights.flatMap(([first, end]) => {
        const at = 530 * first / n;
        const size = Math.max(3, 530 * (end - first) / n);
        return [
          draw("rect", {
            class: "mark",
            x: 60 + at,
            y: 32,
            width: size,
            height: 6,
          }),
          draw("rect", {
            class: "mark",
            x: 592,
            y: 40 + at,
            width: 6,
            height: size,
          }),
        ];
      }),
    );
  }

  /** Draws the chosen layer and head. */
  update(): void {
    const { blocks, maps } = this.#attention;
    const { queryHeads } = this.#view.model;
    const size = blocks * blocks;
    const table = Float64Array.from(
      { length: 256 },
      (_, i) => decodeProbability(i),
    );
    const heads = this.#head < 0
      ? Array.from({ length: queryHeads }, (_, i) => i)
      : [this.#head];
    this.#values = new Float64Array(size);
    for (const head of heads) {
      const from = (this.#layer * queryHeads + head) * size;
      for (let i = 0; i < size; i++) {
        this.#values[i]! += table[maps[from + i]!]! / heads.length;
      }
    }
    const paint = this.#canvas.getContext("2d");
    if (paint === null) return;
    const image = paint.createImageData(blocks, blocks);
    const stops = ["--ramp-0", "--ramp-1", "--ramp-2"].map((name) =>
      channels(styleOf(name))
    );
    const colours = Array.from({ length: STEPS + 1 }, (_, i) => {
      const at = 2 * i / STEPS;
      const [a, b] = at < 1 ? [stops[0]!, stops[1]!] : [stops[1]!, stops[2]!];
      return a.map((c, k) => c + (b[k]! - c) * (at < 1 ? at : at - 1));
    });
    const share = this.#scale === "linear"
      ? (p: number) => p
      : (p: number) => p > 1e-5 ? 1 + Math.log10(p) / 5 : 0;
    for (let i = 0; i < size; i++) {
      const step = Math.round(STEPS * Math.min(1, share(this.#values[i]!)));
      // Keys after the query are not there at all.
      const future = i % blocks > Math.floor(i / blocks);
      image.data.set([...colours[step]!, future ? 0 : 255], 4 * i);
    }
    paint.putImageData(image, 0, 0);
  }

  #lines(row: number, column: number): string[] {
    const { block } = this.#attention;
    const n = this.#view.tokens.length;
    const range = (at: number) =>
      `${count(at * block)} to ${count(Math.min(n, (at + 1) * block) - 1)}`;
    const text = this.#view.tokens
      .slice(column * block, Math.min(n, (column + 1) * block)).join("");
    return [
      `queries ${range(row)}, keys ${range(column)}`,
      column > row
        ? "the future"
        : percent(this.#values[row * this.#attention.blocks + column]!),
      `keys: “${text.length > 120 ? `${text.slice(0, 120)}…` : text}”`,
    ];
  }

  #hover({ clientX, clientY }: MouseEvent): void {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    const { blocks } = this.#attention;
    const clamp = (share: number) =>
      Math.max(0, Math.min(blocks - 1, Math.floor(share * blocks)));
    const column = clamp((clientX - left) / width);
    const row = clamp((clientY - top) / height);
    this.#cursor = { row, column };
    showHint(this.#lines(row, column), { x: clientX, y: clientY });
  }

  #key(event: KeyboardEvent): void {
    const [down, across] = {
      ArrowDown: [1, 0],
      ArrowUp: [-1, 0],
      ArrowRight: [0, 1],
      ArrowLeft: [0, -1],
    }[event.key] ?? [0, 0];
    if (down === 0 && across === 0) return;
    event.preventDefault();
    const last = this.#attention.blocks - 1;
    const clamp = (at: number) => Math.max(0, Math.min(last, at));
    const row = clamp(this.#cursor.row + down!);
    const column = clamp(this.#cursor.column + across!);
    this.#cursor = { row, column };
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    showHint(this.#lines(row, column), {
      x: left + width * (column + 0.5) / (last + 1),
      y: top + height * (row + 0.5) / (last + 1),
    }, true);
  }
}
