/**
 * From the names of a Hugging Face checkpoint to the native library's tensors, with the shapes that a model's
 * `config.json` implies.
 *
 * @module
 */
import { dirname } from "@std/path";
import { malformed, show } from "./_file.ts";
import type {
  SafetensorsHeader,
  TensorDtype,
  TensorInfo,
} from "./safetensors.ts";
import type { ModelConfig } from "./types.ts";

/** Tensors of the native library, with the numbers of `enum kvf_tensor` in csrc/kvf.h. */
export const TENSOR_KINDS = {
  embed: 0,
  output: 1,
  finalNorm: 2,
  attnNorm: 3,
  mlpNorm: 4,
  q: 5,
  k: 6,
  v: 7,
  o: 8,
  qBias: 9,
  kBias: 10,
  vBias: 11,
  oBias: 12,
  qNorm: 13,
  kNorm: 14,
  gate: 15,
  up: 16,
  down: 17,
  router: 18,
} as const;

/** Name of a tensor of the native library. */
export type TensorKind = keyof typeof TENSOR_KINDS;

/** Element types that the native library loads, with the numbers of `enum kvf_dtype` in csrc/kvf.h. */
export const WEIGHT_DTYPES = { f32: 0, f16: 1, bf16: 2 } as const;

/** One tensor that a model needs. */
export interface TensorSlot {
  /** Name in the checkpoint. */
  readonly name: string;
  /** What it is. */
  readonly kind: TensorKind;
  /** Layer; 0 for tensors that belong to none. */
  readonly layer: number;
  /** Expert; 0 where there are none. */
  readonly expert: number;
  /** `[rows, columns]`, or `[columns]` for vectors. */
  readonly shape: readonly number[];
}

/** One tensor to load: where it lies and what it is. */
export interface LoadEntry {
  /** Where its bytes are. */
  readonly tensor: TensorInfo;
  /** What it is. */
  readonly slot: TensorSlot;
  /** Its element type. */
  readonly dtype: keyof typeof WEIGHT_DTYPES;
}

/** All tensors of a model, found in its files. */
export interface LoadPlan {
  /** Headers of the files, in loading order. */
  readonly headers: readonly SafetensorsHeader[];
  /** By name in the checkpoint. */
  readonly entries: ReadonlyMap<string, LoadEntry>;
  /** Tensors that are in the files and not needed. */
  readonly ignored: readonly TensorInfo[];
  /** Bytes that will be streamed. */
  readonly bytes: number;
  /** Weights of the model. */
  readonly parameters: number;
}

const FILE_DTYPES: Partial<
  Record<TensorDtype, keyof typeof WEIGHT_DTYPES>
> = { F32: "f32", F16: "f16", BF16: "bf16" };

/** Tables that old versions of transformers saved and that follow from the configuration. */
const IGNORED = /(^|\.)rotary_emb\.inv_freq$/;

/** Name of the output matrix in a checkpoint. */
const OUTPUT_NAME = "lm_head.weight";

/**
 * The tensors that a model needs, in the order of its layers.
 *
 * @param config The model's shape.
 * @returns Names, kinds and shapes.
 */
export function* tensorSlots(
  config: ModelConfig,
): Generator<TensorSlot, void, void> {
  const { hidden, vocab, intermediate, headDim } = config;
  const queries = config.queryHeads * headDim;
  const keys = config.kvHeads * headDim;
  const one = (
    name: string,
    kind: TensorKind,
    shape: number[],
    layer = 0,
    expert = 0,
  ): TensorSlot => ({ name, kind, layer, expert, shape });

  yield one("model.embed_tokens.weight", "embed", [vocab, hidden]);
  for (let layer = 0; layer < config.layers; layer++) {
    const at = `model.layers.${layer}`;
    const attn = `${at}.self_attn`;
    yield one(`${at}.input_layernorm.weight`, "attnNorm", [hidden], layer);
    yield one(`${attn}.q_proj.weight`, "q", [queries, hidden], layer);
    yield one(`${attn}.k_proj.weight`, "k", [keys, hidden], layer);
    yield one(`${attn}.v_proj.weight`, "v", [keys, hidden], layer);
    yield one(`${attn}.o_proj.weight`, "o", [hidden, queries], layer);
    if (config.qkvBias) {
      yield one(`${attn}.q_proj.bias`, "qBias", [queries], layer);
      yield one(`${attn}.k_proj.bias`, "kBias", [keys], layer);
      yield one(`${attn}.v_proj.bias`, "vBias", [keys], layer);
    }
    if (config.oBias) {
      yield one(`${attn}.o_proj.bias`, "oBias", [hidden], layer);
    }
    if (config.qkNorm) {
      yield one(`${attn}.q_norm.weight`, "qNorm", [headDim], layer);
      yield one(`${attn}.k_norm.weight`, "kNorm", [headDim], layer);
    }
    yield one(
      `${at}.post_attention_layernorm.weight`,
      "mlpNorm",
      [hidden],
      layer,
    );
    const wide = [intermediate, hidden];
    const narrow = [hidden, intermediate];
    if (config.experts === 0) {
      yield one(`${at}.mlp.gate_proj.weight`, "gate", wide, layer);
      yield one(`${at}.mlp.up_proj.weight`, "up", wide, layer);
      yield one(`${at}.mlp.down_proj.weight`, "down", narrow, layer);
      continue;
    }
    const moe = `${at}.block_sparse_moe`;
    yield one(
      `${moe}.gate.weight`,
      "router",
      [config.experts, hidden],
      layer,
    );
    for (let e = 0; e < config.experts; e++) {
      yield one(`${moe}.experts.${e}.w1.weight`, "gate", wide, layer, e);
      yield one(`${moe}.experts.${e}.w3.weight`, "up", wide, layer, e);
      yield one(`${moe}.experts.${e}.w2.weight`, "down", narrow, layer, e);
    }
  }
  yield one("model.norm.weight", "finalNorm", [hidden]);
  if (!config.tied) yield one(OUTPUT_NAME, "output", [vocab, hidden]);
}

/**
 * Finds every tensor of a model in its files and checks name, shape and dtype.
 *
 * @param headers Headers of the files.
 * @param config The model's shape.
 * @returns What to load.
 * @throws {SyntaxError} A tensor is missing, unexpected, or has the wrong shape or dtype; the message names it and its
 * file.
 */
export function planLoad(
  headers: readonly SafetensorsHeader[],
  config: ModelConfig,
): LoadPlan {
  const found = new Map<string, TensorInfo>();
  for (const header of headers) {
    for (const [name, tensor] of header.tensors) found.set(name, tensor);
  }
  // Where a tensor is in none of several shards, their folder is what is wrong.
  const first = headers[0]?.file ?? "";
  const files = headers.length > 1 ? dirname(first) : first;
  const entries = new Map<string, LoadEntry>();
  let bytes = 0;
  let parameters = 0;
  for (const slot of tensorSlots(config)) {
    const tensor = found.get(slot.name);
    // The first one that is missing ends the loop, so that an absurd configuration costs nothing.
    if (tensor === undefined) {
      throw malformed(
        files,
        `it must hold tensor "${slot.name}" ${show(slot.shape)}`,
        "missing",
      );
    }
    const { file, shape } = tensor;
    if (
      shape.length !== slot.shape.length ||
      shape.some((size, i) => size !== slot.shape[i])
    ) {
      throw malformed(
        file,
        `tensor "${slot.name}" must have the shape that config.json implies, ${
          show(slot.shape)
        }`,
        shape,
      );
    }
    const dtype = FILE_DTYPES[tensor.dtype];
    if (dtype === undefined) {
      throw malformed(
        file,
        `tensor "${slot.name}" must be F32, F16 or BF16`,
        tensor.dtype,
      );
    }
    entries.set(slot.name, { tensor, slot, dtype });
    bytes += tensor.bytes;
    parameters += slot.shape.reduce((a, b) => a * b, 1);
  }
  const ignored: TensorInfo[] = [];
  for (const [name, tensor] of found) {
    if (entries.has(name)) continue;
    if (!IGNORED.test(name) && !(config.tied && name === OUTPUT_NAME)) {
      throw malformed(
        tensor.file,
        `it must not hold tensors that a ${config.architecture} has no use for`,
        name,
      );
    }
    ignored.push(tensor);
  }
  return { headers, entries, ignored, bytes, parameters };
}
