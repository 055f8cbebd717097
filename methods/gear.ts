/**
 * GEAR: a quantised cache whose loss is made up for by a low-rank correction and exact outliers.
 *
 * The elements farthest out are stored as they are, the others quantised as KIVI does it; of what the codes then lose, the
 * part that lies along the head's `rank` strongest directions is stored as well.
 *
 * Paper: https://arxiv.org/abs/2403.05527
 * Acts: when prefill ends, and whenever a page of tokens has left the residual during decode.
 * Differs from the paper: a head's directions are fitted to the prompt and serve the tokens generated later, too, where
 * the paper fits rank 2 to every buffer of new tokens; outliers are chosen per page of 32 tokens, not per vector, and are
 * 2 % by default as in the paper (KVCache-Factory declares 0 and never runs it); the residual plays the buffer's part.
 *
 * @module
 */
import { defineMethod, integer, type Method, real } from "./define.ts";
import { BITS, gearFormat } from "./parts/quant.ts";

/** Options of {@linkcode gear}. */
export interface GearOptions {
  /** Bits of a code. */
  bits: number;
  /** Newest tokens that stay as they are. */
  residual: number;
  /** Rank of the correction. */
  rank: number;
  /** Share of the elements that are stored exactly. */
  outliers: number;
}

/** The GEAR method. */
export const gear: Method<GearOptions> = defineMethod<GearOptions>({
  name: "gear",
  title: "GEAR",
  summary: "Quantised cache with low-rank correction and outliers",
  paper: "https://arxiv.org/abs/2403.05527",
  kind: "quantise",
  acts: "when prefill ends and during decode",
  granularities: ["kv_head", "query_head"],
  differs:
    "directions are fitted to the prompt and serve later tokens, too; outliers are chosen per page",
  options: {
    bits: BITS,
    residual: integer("Newest tokens that stay as they are", { default: 32 }),
    rank: integer("Rank of the correction; 0: none", {
      max: 32,
      default: 4,
      source: "GEAR, section 3; KVCache-Factory c97f9d7, quantization.py",
    }),
    outliers: real("Share of the elements that are stored exactly", {
      min: 0,
      max: 0.25,
      default: 0.02,
      source: "GEAR, section 4",
    }),
  },
  create({ bits, residual, rank, outliers }, { headDim }) {
    if (rank > headDim) {
      throw new RangeError(
        `Cannot run "gear" as rank must be at most the ${headDim} channels of a head: rank is ${rank}`,
      );
    }
    const format = gearFormat(bits, residual, rank, outliers);
    return { afterPrefill: (layer) => layer.pack(format) };
  },
});
