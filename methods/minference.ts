/**
 * MInference: compute only the part of the prompt's attention that matters, head by head.
 *
 * Attention heads of long prompts look at few rows, each head in its own way: at certain columns and diagonals
 * (`vertical_and_slash`), at the first and the most recent tokens (`stream_llm`), or at scattered blocks (`block_sparse`).
 * The way of each head is found once for a model, offline; which columns, diagonals or blocks it is, anew for every prompt.
 * The cache stays full.
 *
 * Paper: https://arxiv.org/abs/2407.02490
 * Acts: in prefill, before each layer's attention. Decode is dense.
 * Differs from the paper: nothing known; ranges of diagonals grow as in the authors' kernels. A pattern file's size for
 * `block_sparse` counts, where the authors' kernel always takes 100 blocks; 0 means 100.
 *
 * @module
 */
import { choice, defineMethod, file, integer, type Method } from "./define.ts";
import { readOptionFile } from "./_files.ts";
import {
  parsePatternFile,
  PATTERN_NAMES,
  type PatternName,
  sparsityOf,
} from "./parts/pattern_file.ts";
import { QUANT_OPTION, quantiserOf } from "./parts/quant.ts";

/** Options of {@linkcode minference}. */
export interface MInferenceOptions {
  /** Patterns per layer and head; heads that it does not name get the options' pattern. */
  patternFile: string;
  /** Pattern of heads that no file names. */
  pattern: PatternName;
  /** Its first size: columns, first tokens, or blocks. */
  firstSize: number;
  /** Its second size: diagonals or recent tokens. */
  secondSize: number;
  /** How rows are stored: `none`, or a packed format. */
  quant: string;
}

const SOURCE = "the authors' code, heads without a pattern";

/** The MInference method. */
export const minference: Method<MInferenceOptions> = defineMethod<
  MInferenceOptions
>({
  name: "minference",
  title: "MInference",
  summary: "Sparse attention in prefill, a pattern for each head",
  paper: "https://arxiv.org/abs/2407.02490",
  kind: "sparse",
  acts: "in prefill, before each layer's attention",
  granularities: ["kv_head", "query_head"],
  altersPrefill: true,
  differs: "nothing known",
  options: {
    patternFile: file(
      "JSON file of patterns per layer and head (kvf search-patterns)",
    ),
    pattern: choice("Pattern of heads that no file names", PATTERN_NAMES, {
      default: "vertical_and_slash",
      source: SOURCE,
    }),
    firstSize: integer("Its columns, first tokens, or blocks (0: 100)", {
      default: 1000,
      source: SOURCE,
    }),
    secondSize: integer("Its diagonals or recent tokens", {
      default: 6096,
      source: SOURCE,
    }),
    quant: QUANT_OPTION,
  },
  create(options, shape) {
    const { patternFile, pattern, firstSize, secondSize, quant } = options;
    const quantiser = quantiserOf("minference", quant, shape);
    const standard = sparsityOf(pattern, firstSize, secondSize);
    const heads = patternFile === ""
      ? Array(shape.layers).fill(Array(shape.queryHeads).fill(standard))
      : parsePatternFile(
        patternFile,
        readOptionFile("minference", patternFile),
        shape,
        standard,
      );
    return {
      beforeAttention: (layer) => layer.attendSparsely(heads[layer.layer]),
      ...(quantiser === undefined
        ? {}
        : { afterPrefill: (layer) => quantiser.encode(layer) }),
    };
  },
});
