/**
 * What all families share: the checked form of `config.json` and the reader that turns it into a plain `ModelConfig`.
 *
 * @module
 */
import { z } from "zod";
import { check, isRecord, unsupported } from "../_file.ts";
import { ropeFrequencies, type RopeParameters } from "../rope.ts";
import type { ModelConfig, WeightDtype } from "../types.ts";

/** Where a family's checkpoints differ from the common decoder. */
export interface FamilyRules {
  /** Defaults of fields that a file may leave out, as in Hugging Face transformers. */
  defaults: {
    kvHeads?: number;
    headDim?: number;
    maxPositions: number;
    normEps: number;
    theta: number;
  };
  /** Which projections have biases. */
  bias: "none" | "attention_bias" | "qkv";
  /** Query and key heads are normalised before rotation. */
  qkNorm: boolean;
  /** Where the sliding window comes from. */
  window: "none" | "all layers" | "by layer";
  /** Window where the file does not mention one. */
  defaultWindow: number | null;
  /** The MLP is a mixture of experts. */
  experts: boolean;
}

/** A model family: a name and how to read its `config.json`. */
export interface Family {
  /** Name in `architectures` of `config.json`. */
  architecture: string;
  /** Short name. */
  name: string;
  /** What is special about it. */
  rules: FamilyRules;
}

const dim = (max: number) => z.int().min(1).max(max);
const positive = z.number().positive().max(1e12);
const tokenId = z.int().min(-1).max(2 ** 31 - 1);

/** A token id, several, or none. */
export const tokenIds = z.union([tokenId, z.array(tokenId).max(64)]).nullish();

const ropeSchema = z.looseObject({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  factor: z.number().min(1).max(1e6).nullish(),
  low_freq_factor: positive.nullish(),
  high_freq_factor: positive.nullish(),
  original_max_position_embeddings: dim(2 ** 31 - 1).nullish(),
  attention_factor: positive.nullish(),
  beta_fast: z.number().min(0).max(1e6).nullish(),
  beta_slow: z.number().min(0).max(1e6).nullish(),
  mscale: z.number().min(0).max(1e3).nullish(),
  mscale_all_dim: z.number().min(0).max(1e3).nullish(),
  truncate: z.boolean().nullish(),
  partial_rotary_factor: z.number().nullish(),
});

const configSchema = z.looseObject({
  num_hidden_layers: dim(4096),
  hidden_size: dim(2 ** 20),
  num_attention_heads: dim(2 ** 14),
  num_key_value_heads: dim(2 ** 14).nullish(),
  head_dim: dim(2 ** 14).nullish(),
  intermediate_size: dim(2 ** 22),
  vocab_size: dim(2 ** 24),
  rms_norm_eps: z.number().positive().max(1).nullish(),
  max_position_embeddings: dim(2 ** 31 - 1).nullish(),
  hidden_act: z.string().nullish(),
  attention_bias: z.boolean().nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  sliding_window: dim(2 ** 31 - 1).nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.int().min(0).max(2 ** 31 - 1).nullish(),
  layer_types: z.array(z.string()).max(4096).nullish(),
  num_local_experts: dim(1024).nullish(),
  num_experts_per_tok: dim(1024).nullish(),
  rope_theta: positive.nullish(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
  dtype: z.string().nullish(),
  torch_dtype: z.string().nullish(),
  eos_token_id: tokenIds,
  bos_token_id: tokenIds,
});

type Raw = z.infer<typeof configSchema>;

/** Fields that change what a model computes and that the runtime does not do: each must have this value or be absent. */
const NEUTRAL: readonly [field: string, value: unknown][] = [
  ["mlp_bias", false],
  ["pretraining_tp", 1],
  ["partial_rotary_factor", 1],
  ["attn_logit_softcapping", null],
  ["final_logit_softcapping", null],
  ["attention_logit_softcapping", null],
  ["quantization_config", null],
  ["compression_config", null],
  ["clip_qkv", null],
  ["use_qk_norm", false],
];

const DTYPES: Record<string, WeightDtype> = {
  float32: "f32",
  float: "f32",
  float16: "f16",
  half: "f16",
  bfloat16: "bf16",
};

/** Ids of a field, without duplicates and negatives. */
export function idList(value: number | number[] | null | undefined): number[] {
  const ids = value === null || value === undefined ? [] : [value].flat();
  return [...new Set(ids)].filter((id) => id >= 0);
}

function readRope(raw: Raw, rules: FamilyRules, file: string): RopeParameters {
  const field = raw.rope_parameters
    ? "rope_parameters"
    : raw.rope_scaling
    ? "rope_scaling"
    : "rope_theta";
  const rope: z.infer<typeof ropeSchema> = raw.rope_parameters ??
    raw.rope_scaling ?? {};
  for (const key of ["full_attention", "sliding_attention"]) {
    if (isRecord(rope[key])) {
      throw unsupported(
        file,
        `${field} must be the same for all layers`,
        Object.keys(rope),
      );
    }
  }
  const theta = rope.rope_theta ?? raw.rope_theta ?? rules.defaults.theta;
  // The logarithm of the base is a divisor below.
  if (theta <= 1) throw unsupported(file, "rope_theta must exceed 1", theta);
  if ((rope.partial_rotary_factor ?? 1) !== 1) {
    throw unsupported(
      file,
      `${field}.partial_rotary_factor must be 1`,
      rope.partial_rotary_factor,
    );
  }
  const type = rope.rope_type ?? rope.type ?? "default";
  const originalMaxPositions = rope.original_max_position_embeddings ??
    raw.max_position_embeddings ?? rules.defaults.maxPositions;
  const needed = (key: "factor" | "low_freq_factor" | "high_freq_factor") => {
    const value = rope[key];
    if (value === null || value === undefined) {
      throw unsupported(file, `${field}.${key} must be given`, rope);
    }
    return value;
  };
  switch (type) {
    case "default":
      return { type, theta };
    case "linear":
      return { type, theta, factor: needed("factor") };
    case "llama3": {
      const low = needed("low_freq_factor");
      const high = needed("high_freq_factor");
      if (high <= low) {
        throw unsupported(
          file,
          `${field}.high_freq_factor must exceed low_freq_factor ${low}`,
          high,
        );
      }
      return {
        type,
        theta,
        factor: needed("factor"),
        lowFreqFactor: low,
        highFreqFactor: high,
        originalMaxPositions,
      };
    }
    case "yarn": {
      const maxPositions = raw.max_position_embeddings ??
        rules.defaults.maxPositions;
      return {
        type,
        theta,
        factor: rope.factor ?? maxPositions / originalMaxPositions,
        originalMaxPositions,
        betaFast: rope.beta_fast || 32,
        betaSlow: rope.beta_slow || 1,
        truncate: rope.truncate ?? true,
        ...(rope.attention_factor
          ? { attentionFactor: rope.attention_factor }
          : {}),
        ...(rope.mscale ? { mscale: rope.mscale } : {}),
        ...(rope.mscale_all_dim ? { mscaleAllDim: rope.mscale_all_dim } : {}),
      };
    }
    default:
      throw unsupported(
        file,
        `${field}.rope_type must be one of "default", "linear", "llama3", "yarn"`,
        type,
      );
  }
}

function readWindows(raw: Raw, rules: FamilyRules, file: string): Uint32Array {
  const windows = new Uint32Array(raw.num_hidden_layers);
  const window = raw.sliding_window === undefined
    ? rules.defaultWindow ?? 0
    : raw.sliding_window ?? 0;
  const types = raw.layer_types;
  if (types) {
    if (types.length !== windows.length) {
      throw unsupported(
        file,
        `layer_types must name ${windows.length} layers`,
        types.length,
      );
    }
    const other = types.find((t) =>
      t !== "full_attention" && t !== "sliding_attention"
    );
    if (other !== undefined) {
      throw unsupported(
        file,
        'layer_types must hold "full_attention" and "sliding_attention"',
        other,
      );
    }
  }
  if (rules.window === "all layers") {
    windows.fill(window);
  } else if (rules.window === "by layer" && raw.use_sliding_window) {
    const first = raw.max_window_layers ?? 28;
    for (let layer = 0; layer < windows.length; layer++) {
      const slides = types
        ? types[layer] === "sliding_attention"
        : layer >= first;
      if (slides) windows[layer] = window;
    }
  }
  return windows;
}

/** Reads the fields that all families share, by the family's rules. */
export function readDecoder(
  family: Family,
  json: Record<string, unknown>,
  file: string,
  defaultDtype: WeightDtype,
): ModelConfig {
  const { rules } = family;
  const raw = check(configSchema, json, file);
  for (const [field, neutral] of NEUTRAL) {
    const value = json[field];
    if (value !== undefined && value !== null && value !== neutral) {
      throw unsupported(
        file,
        `${field} must be ${JSON.stringify(neutral)} or absent`,
        value,
      );
    }
  }
  const act = raw.hidden_act ?? "silu";
  if (act !== "silu" && act !== "swish") {
    throw unsupported(file, 'hidden_act must be "silu"', act);
  }
  const queryHeads = raw.num_attention_heads;
  // A missing field has the family's default, an explicit null means multi-head attention.
  const kvHeads = raw.num_key_value_heads ??
    (raw.num_key_value_heads === null ? queryHeads : rules.defaults.kvHeads ??
      queryHeads);
  if (queryHeads % kvHeads !== 0) {
    throw unsupported(
      file,
      `num_key_value_heads must divide num_attention_heads ${queryHeads}`,
      kvHeads,
    );
  }
  const headDim = raw.head_dim ??
    (raw.head_dim === null ? undefined : rules.defaults.headDim) ??
    raw.hidden_size / queryHeads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0 || headDim > 256) {
    throw unsupported(
      file,
      "head_dim (or hidden_size / num_attention_heads) must be even and at most 256",
      headDim,
    );
  }
  const experts = rules.experts ? raw.num_local_experts ?? 8 : 0;
  const expertsUsed = rules.experts ? raw.num_experts_per_tok ?? 2 : 0;
  if (expertsUsed > experts) {
    throw unsupported(
      file,
      `num_experts_per_tok must be at most num_local_experts ${experts}`,
      expertsUsed,
    );
  }
  const declared = raw.dtype ?? raw.torch_dtype;
  const dtype = declared === null || declared === undefined
    ? defaultDtype
    : DTYPES[declared.replace(/^torch\./, "")];
  if (dtype === undefined) {
    throw unsupported(
      file,
      'dtype must be "float32", "float16" or "bfloat16"',
      declared,
    );
  }
  const rope = readRope(raw, rules, file);
  const { invFreq, scale } = ropeFrequencies(headDim, rope);
  const hasBias = rules.bias === "qkv" ||
    (rules.bias === "attention_bias" && (raw.attention_bias ?? false));
  const bos = idList(raw.bos_token_id)[0];
  return {
    architecture: family.architecture,
    family: family.name,
    layers: raw.num_hidden_layers,
    hidden: raw.hidden_size,
    queryHeads,
    kvHeads,
    headDim,
    intermediate: raw.intermediate_size,
    vocab: raw.vocab_size,
    normEps: raw.rms_norm_eps ?? rules.defaults.normEps,
    maxPositions: raw.max_position_embeddings ?? rules.defaults.maxPositions,
    qkvBias: hasBias,
    oBias: hasBias && rules.bias === "attention_bias",
    qkNorm: rules.qkNorm,
    tied: raw.tie_word_embeddings ?? false,
    normExpertProb: rules.experts,
    experts,
    expertsUsed,
    invFreq,
    ropeScale: scale,
    layerWindow: readWindows(raw, rules, file),
    dtype,
    eosIds: idList(raw.eos_token_id),
    ...(bos === undefined ? {} : { bosId: bos }),
    rope: {
      type: rope.type,
      theta: rope.theta,
      ...(rope.type === "default" ? {} : { factor: rope.factor }),
    },
  };
}
