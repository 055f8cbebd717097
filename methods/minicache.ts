/**
 * MiniCache: let neighbouring layers share the directions of their keys and values.
 *
 * In the deeper part of a model the rows of one token in two neighbouring layers point almost the same way. So a pair of
 * layers keeps one direction per row, between the two, and each layer the length of its own row. The tokens whose two rows
 * differ most keep both as they are. Attention puts rows together again as it reads them.
 *
 * Paper: https://arxiv.org/abs/2405.14366
 * Acts: once per pair of layers, when prefill ends. Rows of generated tokens are kept whole.
 * Differs from the paper: as in KVCache-Factory a fixed share of the tokens is kept exact, for keys and values apart; the
 * paper sets a threshold on the distance, relative to its range.
 *
 * @module
 */
import { defineMethod, type Method, real } from "./define.ts";

/** Options of {@linkcode minicache}. */
export interface MiniCacheOptions {
  /** Where the shared direction lies: 0 at the lower layer's, 1 at the upper layer's. */
  interpolation: number;
  /** Share of the rows that stay exact, those that differ most. */
  keepRatio: number;
  /** Layers below this share of the model keep all rows of their own. */
  firstShare: number;
}

/** The MiniCache method. */
export const minicache: Method<MiniCacheOptions> = defineMethod<
  MiniCacheOptions
>({
  name: "minicache",
  title: "MiniCache",
  summary: "Neighbouring layers share the directions of rows",
  paper: "https://arxiv.org/abs/2405.14366",
  kind: "merge",
  acts: "once per pair of layers, when prefill ends",
  granularities: ["kv_head", "query_head"],
  differs:
    "a fixed share of the tokens is kept exact, as in KVCache-Factory; the paper sets a threshold",
  options: {
    interpolation: real(
      "Where the shared direction lies, from the lower layer's (0) to the upper's (1)",
      {
        min: 0,
        max: 1,
        default: 0.6,
        source: "paper, section 4.1; KVCache-Factory c97f9d7",
      },
    ),
    keepRatio: real("Share of the rows that stay exact", {
      min: 0,
      max: 1,
      default: 0.05,
      source: "paper, section 4.2; KVCache-Factory c97f9d7",
    }),
    firstShare: real("Layers below this share of the model share nothing", {
      min: 0,
      max: 1,
      default: 0.5,
      source: "paper, section 4: from the middle of the model on",
    }),
  },
  create({ interpolation, keepRatio, firstShare }, { layers }) {
    const first = Math.floor(layers * firstShare);
    return {
      afterPrefill(layer) {
        if (layer.layer <= first || (layer.layer - first) % 2 === 0) return;
        const exact = Math.min(
          layer.length,
          Math.ceil(layer.length * keepRatio),
        );
        layer.shareDirections({ interpolation, exact });
      },
    };
  },
});
