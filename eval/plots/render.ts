/**
 * SVG to PNG. Reads two files: the rasteriser's WebAssembly and the font, both under `node_modules`.
 *
 * @module
 */
import { initWasm, Resvg } from "@resvg/resvg-wasm";

const FONT = "dejavu-fonts-ttf/ttf/DejaVuSans.ttf";
let ready: Promise<Uint8Array> | undefined;

/** Makes the rasteriser ready and returns the font. */
async function prepare(): Promise<Uint8Array> {
  await initWasm(
    await Deno.readFile(
      new URL(import.meta.resolve("@resvg/resvg-wasm/index_bg.wasm")),
    ),
  );
  return await Deno.readFile(new URL(import.meta.resolve(FONT)));
}

/** Draws an SVG as PNG, `scale` pixels per unit. */
export async function renderPng(svg: string, scale = 2): Promise<Uint8Array> {
  const font = await (ready ??= prepare());
  const image = new Resvg(svg, {
    background: "white",
    fitTo: { mode: "zoom", value: scale },
    font: { fontBuffers: [font], defaultFontFamily: "DejaVu Sans" },
  });
  return image.render().asPng();
}
