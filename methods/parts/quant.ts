/**
 * How kept rows are stored: plain, or packed with few bits. Any method that leaves rows in the cache may be combined
 * with a packed format; the names and what they mean are registered here.
 *
 * @module
 */
import { integer, text } from "../define.ts";
import type {
  LayerContext,
  ModelShape,
  OptionSpec,
  PackFormat,
} from "../types.ts";

/** A packed format, ready to be applied. */
export interface Quantiser {
  /** Packs the rows that the layer holds. */
  encode(layer: LayerContext): void;
}

/** Makes a quantiser from what follows the name's colon (the number of bits). */
export type QuantiserMaker = (bits: number, shape: ModelShape) => Quantiser;

/** Newest rows that stay plain in a combination: a page, so that small budgets are packed as well. */
const RESIDUAL = 32;

/** Bits of a code, for methods that pack rows. */
export const BITS: OptionSpec<number> = integer(
  "Bits of a code: 2, 3, 4 or 8",
  { oneOf: [2, 3, 4, 8], default: 4 },
);

/** Channels that share a scale per token, at most. */
const GROUP = 32;

/** KIVI: keys per channel, values per token in groups of channels, all evenly spaced. Section 3 of its paper. */
export function kiviFormat(bits: number, residual: number): PackFormat {
  return {
    residual,
    keys: { bits, axis: "channel" },
    values: { bits, axis: "token", group: GROUP },
  };
}

/**
 * KVQuant: keys per channel before rotation, values per token, fitted levels, a share of the elements dense-and-sparse.
 * Section 3 of its paper.
 */
export function kvquantFormat(
  bits: number,
  residual: number,
  outliers: number,
): PackFormat {
  const levels = "fitted";
  return {
    residual,
    keys: { bits, axis: "channel", levels, outliers, unrotated: true },
    values: { bits, axis: "token", levels, outliers },
  };
}

/** GEAR: KIVI's codes, a low-rank correction of what they lose, and exact outliers. Section 3 of its paper. */
export function gearFormat(
  bits: number,
  residual: number,
  rank: number,
  outliers: number,
): PackFormat {
  const { keys, values } = kiviFormat(bits, residual);
  return {
    residual,
    keys: { ...keys!, rank, outliers },
    values: { ...values!, rank, outliers },
  };
}

function maker(
  allowed: readonly number[],
  format: (bits: number, shape: ModelShape) => PackFormat,
): QuantiserMaker {
  return (bits, shape) => {
    if (!allowed.includes(bits)) {
      throw new RangeError(
        `Cannot pack rows as the bits must be ${
          allowed.join(", ")
        }: they are ${bits}`,
      );
    }
    const packed = format(bits, shape);
    return { encode: (layer) => layer.pack(packed) };
  };
}

/** Formats by name. */
export const QUANTISERS: ReadonlyMap<string, QuantiserMaker> = new Map([
  ["kivi", maker([2, 3, 4, 8], (bits) => kiviFormat(bits, RESIDUAL))],
  ["kvquant", maker([2, 3, 4], (bits) => kvquantFormat(bits, RESIDUAL, 0.01))],
  [
    "gear",
    maker(
      [2, 3, 4, 8],
      (bits, { headDim }) =>
        gearFormat(bits, RESIDUAL, Math.min(4, headDim), 0.02),
    ),
  ],
]);

/** The option of every method that leaves rows in the cache. */
export const QUANT_OPTION: OptionSpec<string> = text(
  "How kept rows are stored: none, or NAME:BITS of kivi, kvquant and gear",
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
