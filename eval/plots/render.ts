/**
 * From a plot to SVG and PNG, without a browser.
 *
 * Permissions: SVG needs none. PNG needs read of `node_modules/@resvg/resvg-wasm` (one .wasm file) and of
 * `node_modules/dejavu-fonts-ttf` (two fonts). No environment variable, no network, no ffi.
 *
 * @module
 */
import { initWasm, Resvg } from "@resvg/resvg-wasm";
import * as vega from "vega";
import { compile } from "vega-lite";
import type { TopLevelSpec } from "vega-lite";
import { packageFile } from "../_package_file.ts";
import { FONT } from "./_theme.ts";

/** A plot, ready to be rendered: a Vega-Lite specification with its data inside. */
export interface Plot {
  /** The specification; JSON, and readable by the Vega editor. */
  readonly spec: { readonly [key: string]: unknown };
}

/** DejaVu Sans is wide; without a canvas Vega guesses 0.8 em per character, which leaves holes in the layout. */
const EM_PER_CHARACTER = 0.6;

/** Vega measures text through this object; its type declarations leave it out. */
interface TextMetrics {
  width: (item: { fontSize?: number }, text: unknown) => number;
}

const { textMetrics } = vega as unknown as { textMetrics: TextMetrics };
textMetrics.width = ({ fontSize = 11 }, text) =>
  String(text ?? "").length * fontSize * EM_PER_CHARACTER;

/** Collects what Vega would print. */
class WarningList implements vega.LoggerInterface {
  readonly warnings: string[] = [];
  #level = vega.Warn;

  level(): number;
  level(value: number): this;
  level(value?: number): number | this {
    if (value === undefined) return this.#level;
    this.#level = value;
    return this;
  }
  error(...args: readonly unknown[]): this {
    this.warnings.push(args.join(" "));
    return this;
  }
  warn(...args: readonly unknown[]): this {
    return this.error(...args);
  }
  info(): this {
    return this;
  }
  debug(): this {
    return this;
  }
}

/**
 * Names gradients and clip paths after the content. Vega counts them up over the life of the process, so equal plots
 * would differ, and two plots of one HTML page could share a name.
 */
async function nameDefinitions(svg: string): Promise<string> {
  const counted = /\b(gradient_|clip)(\d+)(?=["')])/g;
  const numbers = new Map<string, number>();
  const plain = svg.replace(counted, (_, kind: string, old: string) => {
    const number = numbers.get(kind + old) ?? numbers.size;
    numbers.set(kind + old, number);
    return `${kind}${number}`;
  });
  const bytes = new TextEncoder().encode(plain);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  const name = new Uint8Array(digest).toHex().slice(0, 8);
  return plain.replace(
    counted,
    (_, kind: string, number: string) => `${kind}${name}_${number}`,
  );
}

/**
 * Renders a plot as SVG. The text stays text; where DejaVu Sans is not installed, viewers take their own font.
 *
 * @param plot The plot.
 * @throws Error when Vega finds fault with the specification or its data, instead of printing it.
 */
export async function renderSvg(plot: Plot): Promise<string> {
  const logger = new WarningList();
  const { spec } = compile(plot.spec as unknown as TopLevelSpec, { logger });
  const view = new vega.View(vega.parse(spec), { renderer: "none", logger });
  try {
    const svg = await view.toSVG();
    if (logger.warnings.length === 0) return await nameDefinitions(svg);
    throw new Error(
      `Cannot render plot as its specification must be sound: ${
        logger.warnings.join("; ")
      }`,
    );
  } finally {
    view.finalize();
  }
}

/** Options of {@linkcode renderPng}. */
export interface PngOptions {
  /** Pixels per unit of the SVG. Default: 2, which is sharp on screens and in print at usual sizes. */
  scale?: number;
}

interface Rasteriser {
  fonts: Uint8Array[];
}

let rasteriser: Promise<Rasteriser> | undefined;

function read(specifier: string): Promise<Uint8Array<ArrayBuffer>> {
  return Deno.readFile(packageFile(import.meta.resolve(specifier)));
}

async function loadRasteriser(): Promise<Rasteriser> {
  const [wasm, ...fonts] = await Promise.all([
    read("@resvg/resvg-wasm/index_bg.wasm"),
    read("dejavu-fonts-ttf/ttf/DejaVuSans.ttf"),
    read("dejavu-fonts-ttf/ttf/DejaVuSans-Bold.ttf"),
  ]);
  await initWasm(wasm);
  return { fonts };
}

/**
 * Rasterises an SVG on white with the DejaVu font.
 *
 * @param svg Text of the SVG.
 * @param options Size.
 * @returns Bytes of a PNG file.
 */
export async function renderPng(
  svg: string,
  options: PngOptions = {},
): Promise<Uint8Array> {
  rasteriser ??= loadRasteriser();
  const { fonts } = await rasteriser;
  const resvg = new Resvg(svg, {
    background: "white",
    fitTo: { mode: "zoom", value: options.scale ?? 2 },
    font: { fontBuffers: fonts, defaultFontFamily: FONT },
  });
  try {
    const image = resvg.render();
    try {
      return image.asPng();
    } finally {
      image.free();
    }
  } finally {
    resvg.free();
  }
}
