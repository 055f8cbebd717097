/**
 * KVQuant: keys quantised per channel before rotation, with levels that fit their distribution and outliers kept apart.
 *
 * Before rotation a key channel is steady from token to token; rotation mixes pairs of channels by the position. So keys
 * are packed as they were before it, and rotated when attention reads them. Codes stand for levels that were fitted to
 * the head's own rows, and the share of elements that lie farthest out is stored exactly, beside the codes.
 *
 * Paper: https://arxiv.org/abs/2401.18079
 * Acts: when prefill ends, and whenever a page of tokens has left the residual during decode.
 * Differs from the paper: levels are fitted to the prompt (every head its own, unweighted), not to calibration data with
 * Fisher weights; outliers are chosen per page of 32 tokens, not per vector; scales are those of a page; the newest
 * `residual` tokens stay plain instead of the first one. `compat reference` is KVCache-Factory's: as its KIVI, with every
 * element beyond 6 in absolute value stored exactly; a page's outliers have a fixed number of places here, so the share
 * is the `outliers` option and the threshold follows from it.
 *
 * @module
 */
import { choice, defineMethod, integer, type Method, real } from "./define.ts";
import { BITS, kvquantFormat } from "./parts/quant.ts";

/** Options of {@linkcode kvquant}. */
export interface KvQuantOptions {
  /** Bits of a code. */
  bits: number;
  /** Newest tokens that stay as they are. */
  residual: number;
  /** Share of the elements that are stored exactly. */
  outliers: number;
  /** The paper's method or the reference's configuration. */
  compat: "paper" | "reference";
}

const RESIDUAL = 32;

/** The KVQuant method. */
export const kvquant: Method<KvQuantOptions> = defineMethod<KvQuantOptions>({
  name: "kvquant",
  title: "KVQuant",
  summary: "Quantised cache: keys before rotation, fitted levels, outliers",
  paper: "https://arxiv.org/abs/2401.18079",
  kind: "quantise",
  acts: "when prefill ends and during decode",
  granularities: ["kv_head", "query_head"],
  differs:
    "levels are fitted to the prompt, outliers chosen per page; compat reference packs the prompt alone, keys per token",
  options: {
    bits: BITS,
    residual: integer("Newest tokens that stay as they are", {
      default: RESIDUAL,
    }),
    outliers: real("Share of the elements that are stored exactly", {
      min: 0,
      max: 0.25,
      default: 0.01,
      source: "KVQuant, section 3.4",
    }),
    compat: choice("The paper's method or the reference's configuration", [
      "paper",
      "reference",
    ], { default: "paper" }),
  },
  create({ bits, residual, outliers, compat }) {
    if (compat === "reference" && residual !== RESIDUAL) {
      throw new RangeError(
        `Cannot run "kvquant" with compat "reference" and a residual as generated tokens all stay plain there: residual is ${residual}`,
      );
    }
    if (compat === "paper" && bits > 4) {
      throw new RangeError(
        `Cannot run "kvquant" as fitted levels must have at most 4 bits: bits is ${bits}`,
      );
    }
    const format = compat === "paper"
      ? kvquantFormat(bits, residual, outliers)
      : {
        once: true,
        keys: { bits, axis: "token", group: 64, outliers } as const,
        values: { bits, axis: "channel", outliers } as const,
      };
    return { afterPrefill: (layer) => layer.pack(format) };
  },
});
