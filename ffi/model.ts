/**
 * The weights and the shape of a model in native memory.
 *
 * @module
 */
import { checkChoice, checkInteger, checkLength } from "./_check.ts";
import { Native } from "./_native.ts";
import { DTYPES, MODEL_CONFIG, MODEL_FLAGS, TENSORS } from "./_structs.ts";
import type { ModelPointer } from "./_symbols.ts";
import { type Device, nativeDevice } from "./device.ts";

/** Element type of tensors and cache rows. */
export type Dtype = "f32" | "f16" | "bf16";

/** Name of a tensor of a model; csrc/kvf.h gives the shapes. */
export type TensorName =
  | "embed"
  | "output"
  | "finalNorm"
  | "attnNorm"
  | "mlpNorm"
  | "q"
  | "k"
  | "v"
  | "o"
  | "qBias"
  | "kBias"
  | "vBias"
  | "oBias"
  | "qNorm"
  | "kNorm"
  | "gate"
  | "up"
  | "down"
  | "router";

/** Everything that the forward pass needs to know of a model besides its weights. */
export interface NativeModelConfig {
  /** Decoder layers. */
  layers: number;
  /** Width of the residual stream. */
  hidden: number;
  /** Query heads. */
  queryHeads: number;
  /** KV heads. */
  kvHeads: number;
  /** Elements of one head, even. */
  headDim: number;
  /** Width of the MLP, of one expert where there are experts. */
  intermediate: number;
  /** Size of the vocabulary. */
  vocab: number;
  /** How matrices are kept in memory. */
  weightDtype: Dtype;
  /** Epsilon of the RMS norms. */
  normEps: number;
  /** Factor on cosine and sine of the rotation (YaRN's attention factor); 1 otherwise. */
  ropeScale: number;
  /** Angle per position of each rotated pair: `[headDim / 2]`. */
  inverseFrequencies: Float32Array<ArrayBuffer>;
  /** Sliding window of each layer, tokens, the token itself included; 0: none. */
  layerWindows: readonly number[];
  /** Query, key and value projections have a bias. */
  qkvBias?: boolean;
  /** The output projection of the attention has a bias. */
  oBias?: boolean;
  /** Each query and key head is normalised before rotation. */
  qkNorm?: boolean;
  /** The output matrix is the embedding table. */
  tiedEmbedding?: boolean;
  /** The chosen experts' probabilities are scaled to sum 1. */
  normExpertProb?: boolean;
  /** Experts; 0 or missing: a dense MLP. */
  experts?: number;
  /** Experts used per token. */
  expertsUsed?: number;
}

/** Where a piece of a tensor belongs. */
export interface TensorPiece {
  /** Which tensor. */
  tensor: TensorName;
  /** Layer; 0 or missing for tensors that exist once. */
  layer?: number;
  /** Expert; 0 or missing where there are none. */
  expert?: number;
  /** Element type of the bytes; they are converted to the model's. */
  dtype: Dtype;
  /** First row; 0 when missing. */
  firstRow?: number;
  /** Rows; vectors are tensors of one row. */
  rows: number;
}

let nativeOf: (model: NativeModel) => Native<ModelPointer>;

/** A model. Create it, load every tensor, call {@linkcode NativeModel.ready}, then run it. */
export class NativeModel implements Disposable {
  static {
    nativeOf = (model) => model.#native;
  }

  /** The device it lives on. */
  readonly device: Device;
  /** Its shape. */
  readonly config: NativeModelConfig;
  #native: Native<ModelPointer>;
  /** What the library reads until it is told otherwise. */
  #held: { source?: Uint8Array<ArrayBuffer> } = {};

  /** Allocates the weights; their values are undefined until they are loaded. */
  constructor(device: Device, config: NativeModelConfig) {
    const action = "create NativeModel";
    const size = (name: keyof NativeModelConfig, min = 1): number =>
      checkInteger(action, name, config[name] as number ?? 0, min);
    let flags = 0;
    for (const [name, bit] of Object.entries(MODEL_FLAGS)) {
      if (config[name as keyof typeof MODEL_FLAGS]) flags |= bit;
    }
    const encoded = MODEL_CONFIG.encode({
      n_layer: size("layers"),
      hidden: size("hidden"),
      n_head: size("queryHeads"),
      n_kv_head: size("kvHeads"),
      head_dim: size("headDim"),
      intermediate: size("intermediate"),
      vocab: size("vocab"),
      weight_dtype: checkChoice(
        action,
        "weightDtype",
        config.weightDtype,
        DTYPES,
      ),
      flags,
      n_expert: size("experts", 0),
      n_expert_used: size("expertsUsed", 0),
      norm_eps: config.normEps,
      rope_scale: config.ropeScale,
    });
    checkLength(
      action,
      "inverseFrequencies",
      config.inverseFrequencies,
      config.headDim / 2,
    );
    checkLength(action, "layerWindows", config.layerWindows, config.layers);
    const windows = Uint32Array.from(
      config.layerWindows,
      (n, i) => checkInteger(action, `layerWindows[${i}]`, n),
    );
    const parent = nativeDevice(device);
    const { library } = parent;
    const pointer = library.create(
      "kvf_model_create",
      parent.pointer,
      encoded,
      config.inverseFrequencies,
      windows,
    );
    this.device = device;
    this.config = config;
    const held = this.#held;
    this.#native = new Native(
      "NativeModel",
      library,
      pointer,
      (pointer) => {
        library.functions.kvf_model_free(pointer);
        delete held.source;
      },
      [parent],
    );
  }

  /**
   * Copies whole rows of a tensor into the model. Rows may come in any order, each exactly once.
   * @param piece where the rows belong
   * @param data the rows, as stored in a file; read during the call only
   */
  load(piece: TensorPiece, data: Uint8Array<ArrayBuffer>): void {
    const action = `load tensor "${piece.tensor}"`;
    const { library, pointer } = this.#native;
    library.status(
      "kvf_model_load",
      pointer,
      checkChoice(action, "tensor", piece.tensor, TENSORS),
      checkInteger(action, "layer", piece.layer ?? 0),
      checkInteger(action, "expert", piece.expert ?? 0),
      checkChoice(action, "dtype", piece.dtype, DTYPES),
      checkInteger(action, "firstRow", piece.firstRow ?? 0),
      checkInteger(action, "rows", piece.rows, 1),
      data,
      data.byteLength,
    );
  }

  /**
   * Says where the data of {@linkcode NativeModel.load} will lie from now on, until {@linkcode NativeModel.ready}: a GPU
   * then copies from there without a detour. The buffer is held.
   * @param buffer the memory that files are read into
   */
  source(buffer: Uint8Array<ArrayBuffer>): void {
    const { library, pointer } = this.#native;
    const { byteLength } = buffer;
    library.status("kvf_model_source", pointer, buffer, byteLength);
    this.#held.source = buffer;
  }

  /** Checks that every row of every tensor was loaded; the message of the error names the first that is missing. */
  ready(): void {
    const { library, pointer } = this.#native;
    library.status("kvf_model_ready", pointer);
    delete this.#held.source;
  }

  /** Fills all weights with numbers drawn from `seed`, for measurements of a shape without weights. */
  randomize(seed: number): void {
    const { library, pointer } = this.#native;
    library.status(
      "kvf_model_randomize",
      pointer,
      checkInteger("randomize NativeModel", "seed", seed),
    );
  }

  /** Bytes of the weights in memory. */
  get bytes(): number {
    const { library, pointer } = this.#native;
    return library.functions.kvf_model_bytes(pointer);
  }

  /** Bytes of weights that one decode step of a batch of one reads. */
  get stepBytes(): number {
    const { library, pointer } = this.#native;
    return library.functions.kvf_model_step_bytes(pointer);
  }

  /** Lets go of the weights; they are freed when no call uses them any more. A second call does nothing. */
  [Symbol.dispose](): void {
    this.#native.dispose();
  }
}

/** The native side of a model, for the other handle classes. */
export function nativeModel(model: NativeModel): Native<ModelPointer> {
  return nativeOf(model);
}
