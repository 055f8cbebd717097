/**
 * MiniCache: let neighbouring layers share the directions of their keys and values.
 *
 * In the deeper part of a model the rows of one token in two neighbouring layers point almost the same way. So a pair of
 * layers keeps one direction per row, between the two, and each layer the length of its own row. The tokens whose two rows
 * differ most keep both as they are. Attention reads directions and lengths as they are stored.
 *
 * Paper: https://arxiv.org/abs/2405.14366
 * Acts: once per pair of layers, when prefill ends. Rows of generated tokens are kept whole.
 * Differs from the paper: by default, as in KVCache-Factory, a fixed share of the tokens is kept exact, for keys and values
 * apart. With `compat: "paper"` these are the tokens whose distance lies within `threshold` of the range of distances below
 * the greatest one, in each head: which end of the range stays is taken from the paper's aim, to keep the most distinct pairs.
 *
 * @module
 */
import { choice, defineMethod, type Method, real } from "./define.ts";

/** Options of {@linkcode minicache}. */
export interface MiniCacheOptions {
  /** Where the shared direction lies: 0 at the lower layer's, 1 at the upper layer's. */
  interpolation: number;
  /** Share of the rows that stay exact, those that differ most. */
  keepRatio: number;
  /** Share of the range of distances, from the greatest down, in which rows stay exact. */
  threshold: number;
  /** Layers below this share of the model keep all rows of their own. */
  firstShare: number;
  /** A fixed share of the rows, or all beyond a threshold. */
  compat: "reference" | "paper";
}

const KEEP_RATIO = 0.05, THRESHOLD = 0.05;

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
    "by default a fixed share of the tokens is kept exact, as in KVCache-Factory; compat paper sets a threshold on the distance",
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
    keepRatio: real("Share of the rows that stay exact (compat reference)", {
      min: 0,
      max: 1,
      default: KEEP_RATIO,
      source: "KVCache-Factory c97f9d7",
    }),
    threshold: real(
      "Share of the range of distances, from the greatest down, in which rows stay exact (compat paper)",
      { min: 0, max: 1, default: THRESHOLD, source: "paper, section 4.2" },
    ),
    firstShare: real("Layers below this share of the model share nothing", {
      min: 0,
      max: 1,
      default: 0.5,
      source: "paper, section 4: from the middle of the model on",
    }),
    compat: choice("A fixed share of exact rows, or the paper's threshold", [
      "reference",
      "paper",
    ], { default: "reference", source: "KVCache-Factory c97f9d7" }),
  },
  create(
    { interpolation, keepRatio, threshold, firstShare, compat },
    { layers },
  ) {
    const paper = compat === "paper";
    if (paper ? keepRatio !== KEEP_RATIO : threshold !== THRESHOLD) {
      throw new RangeError(
        `Cannot run "minicache" as compat ${compat} has no ${
          paper ? "keepRatio" : "threshold"
        }: it is ${paper ? keepRatio : threshold}`,
      );
    }
    const first = Math.floor(layers * firstShare);
    return {
      afterPrefill(layer) {
        if (layer.layer <= first || (layer.layer - first) % 2 === 0) return;
        const exact = Math.min(
          layer.length,
          Math.ceil(layer.length * keepRatio),
        );
        layer.shareDirections(
          paper
            ? { interpolation, within: threshold }
            : { interpolation, exact },
        );
      },
    };
  },
});
