/**
 * KIVI: keys quantised per channel, values per token.
 *
 * A key channel keeps its scale from token to token while a few channels are much larger than the others, so the keys of
 * a page share a scale per channel; values have no such channels, so each token's value is cut into groups of channels
 * that share one. The newest `residual` tokens stay as they are.
 *
 * Paper: https://arxiv.org/abs/2402.02750
 * Acts: when prefill ends, and whenever a page of tokens has left the residual during decode.
 * Differs from the paper: values leave the residual a page at a time, as the keys do, and not one by one; a page has 32
 * tokens, the paper's group. `compat reference` is the configuration that KVCache-Factory hands to its quantised cache:
 * keys per token in groups of 64 channels, the whole prompt packed at once, generated tokens plain (its residual is the
 * number of new tokens); its values' axis groups elements of several heads and distant tokens, here those of one channel
 * in a page. What that library gets wrong (its default backend's name, 3 bits, constant groups) is not repeated.
 *
 * @module
 */
import { choice, defineMethod, integer, type Method } from "./define.ts";
import { BITS, kiviFormat } from "./parts/quant.ts";

/** Options of {@linkcode kivi}. */
export interface KiviOptions {
  /** Bits of a code. */
  bits: number;
  /** Newest tokens that stay as they are. */
  residual: number;
  /** The paper's method or the reference's configuration. */
  compat: "paper" | "reference";
}

/** Newest tokens of the paper's experiments. */
const RESIDUAL = 128;

/** The KIVI method. */
export const kivi: Method<KiviOptions> = defineMethod<KiviOptions>({
  name: "kivi",
  title: "KIVI",
  summary: "Quantised cache: keys per channel, values per token",
  paper: "https://arxiv.org/abs/2402.02750",
  kind: "quantise",
  acts: "when prefill ends and during decode",
  granularities: ["kv_head", "query_head"],
  differs:
    "values leave the residual a page of 32 tokens at a time; compat reference packs the prompt alone, keys per token",
  options: {
    bits: BITS,
    residual: integer("Newest tokens that stay as they are", {
      default: RESIDUAL,
      source: "KIVI, section 4.1",
    }),
    compat: choice("The paper's method or the reference's configuration", [
      "paper",
      "reference",
    ], { default: "paper" }),
  },
  create({ bits, residual, compat }) {
    if (compat === "reference" && residual !== RESIDUAL) {
      throw new RangeError(
        `Cannot run "kivi" with compat "reference" and a residual as generated tokens all stay plain there: residual is ${residual}`,
      );
    }
    const format = compat === "paper" ? kiviFormat(bits, residual) : {
      once: true,
      keys: { bits, axis: "token", group: 64 } as const,
      values: { bits, axis: "channel" } as const,
    };
    return { afterPrefill: (layer) => layer.pack(format) };
  },
});
