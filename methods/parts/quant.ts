/**
 * How kept rows are stored: plain, or packed with few bits. Any method that leaves rows in the cache may be combined
 * with a packed format; the names and what they mean are registered here.
 *
 * @module
 */
import { text } from "../define.ts";
import type { LayerContext, ModelShape, OptionSpec } from "../types.ts";

/** A packed format, ready to be applied. */
export interface Quantiser {
  /** Packs the rows that the layer holds. */
  encode(layer: LayerContext): void;
}

/** Makes a quantiser from what follows the name's colon (the number of bits). */
export type QuantiserMaker = (bits: number, shape: ModelShape) => Quantiser;

/** Formats by name. */
export const QUANTISERS: ReadonlyMap<string, QuantiserMaker> = new Map();

/** The option of every method that leaves rows in the cache. */
export const QUANT_OPTION: OptionSpec<string> = text(
  "How kept rows are stored: none, or NAME:BITS",
  { pattern: /^(none|[a-z]+:\d+)$/, default: "none" },
);

/**
 * The quantiser that an option's value names; undefined for `none`.
 * @throws {RangeError} when there is no such format
 */
export function quantiserOf(
  method: string,
  quant: string,
  shape: ModelShape,
): Quantiser | undefined {
  if (quant === "none") return undefined;
  const [name = "", bits] = quant.split(":");
  const maker = QUANTISERS.get(name);
  if (maker !== undefined) return maker(Number(bits), shape);
  throw new RangeError(
    `Cannot run "${method}" as quant must be ${
      ["none", ...[...QUANTISERS.keys()].map((name) => `${name}:BITS`)].join(
        ", ",
      )
    }: it is "${quant}"`,
  );
}
