/**
 * Plain facts about a model: what the native library needs to know about its shape, and nothing else.
 *
 * @module
 */

/** Element type of weights. */
export type WeightDtype = "f32" | "f16" | "bf16";

/** How the rotary embedding was computed, for reports. The numbers that act are `invFreq` and `ropeScale`. */
export interface RopeSummary {
  /** Kind of scaling. */
  type: "default" | "linear" | "llama3" | "yarn";
  /** Base of the frequencies. */
  theta: number;
  /** Scaling factor; missing where there is none. */
  factor?: number;
}

/** A decoder-only model's shape, read from its `config.json`. One forward pass serves every family. */
export interface ModelConfig {
  /** Name of the architecture as the file has it, for instance `LlamaForCausalLM`. */
  architecture: string;
  /** Short family name, for instance `llama`. */
  family: string;
  /** Decoder layers. */
  layers: number;
  /** Width of the residual stream. */
  hidden: number;
  /** Query heads. */
  queryHeads: number;
  /** KV heads; divides `queryHeads`. */
  kvHeads: number;
  /** Elements of one head; even. */
  headDim: number;
  /** Width of the MLP, or of one expert. */
  intermediate: number;
  /** Rows of the embedding table. */
  vocab: number;
  /** Added to the mean square in RMS norms. */
  normEps: number;
  /** Tokens that the model was made for. */
  maxPositions: number;
  /** Query, key and value projections have biases. */
  qkvBias: boolean;
  /** The output projection of attention has a bias. */
  oBias: boolean;
  /** Query and key heads are normalised before rotation. */
  qkNorm: boolean;
  /** The output matrix is the embedding table. */
  tied: boolean;
  /** The chosen experts' probabilities are scaled to sum 1. */
  normExpertProb: boolean;
  /** Experts per layer; 0 for a dense MLP. */
  experts: number;
  /** Experts that each token uses; 0 for a dense MLP. */
  expertsUsed: number;
  /** `[headDim / 2] f32`, radians per position of each rotated pair. */
  invFreq: Float32Array;
  /** Factor on cosine and sine; 1 except for YaRN. */
  ropeScale: number;
  /** `[layers] u32`, sliding window in tokens, the token itself included; 0 for none. */
  layerWindow: Uint32Array;
  /** Element type of the weights, as the file says. */
  dtype: WeightDtype;
  /** Token ids that end a text, as `config.json` says. */
  eosIds: number[];
  /** Token id that begins a text, as `config.json` says. */
  bosId?: number;
  /** Where `invFreq` comes from. */
  rope: RopeSummary;
}
