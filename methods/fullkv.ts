/**
 * FullKV: keep every row. The baseline that all other methods are compared with.
 *
 * Paper: none; this is attention as the model defines it.
 * Acts: never.
 * Differs from the paper: nothing known.
 *
 * @module
 */
import { defineMethod, type Method } from "./define.ts";
import { QUANT_OPTION, quantiserOf } from "./parts/quant.ts";

/** Options of {@linkcode fullkv}. */
export interface FullKvOptions {
  /** How rows are stored: `none`, or a packed format. */
  quant: string;
}

/** The uncompressed cache. */
export const fullkv: Method<FullKvOptions> = defineMethod<FullKvOptions>({
  name: "fullkv",
  title: "FullKV",
  summary: "No compression",
  kind: "none",
  acts: "never, unless rows are packed",
  granularities: ["kv_head", "query_head"],
  differs: "nothing known",
  options: { quant: QUANT_OPTION },
  create({ quant }, shape) {
    const quantiser = quantiserOf("fullkv", quant, shape);
    return quantiser === undefined
      ? {}
      : { afterPrefill: (layer) => quantiser.encode(layer) };
  },
});
