/**
 * A model folder, loaded onto a device and ready to generate.
 *
 * @module
 */
import {
  Cache,
  Device,
  type DeviceKind,
  NativeModel,
  type NativeModelConfig,
  type SimdLevel,
  type TensorName,
} from "../../ffi/mod.ts";
import type { ModelShape } from "../../methods/types.ts";
import {
  type LoadProgress,
  loadWeights,
  type ModelConfig,
  type ModelFolder,
  openModelFolder,
  readModelConfig,
  TENSOR_KINDS,
  WEIGHT_DTYPES,
  type WeightDtype,
  type WeightSink,
} from "../../models/mod.ts";

/** Options of {@linkcode LanguageModel.load}. */
export interface LanguageModelOptions {
  /** `cpu` (default), `cuda` or `cuda:N`. */
  device?: string;
  /** Path of the library file in place of the build beside the project. */
  library?: string;
  /** CPU threads; default: all that the affinity mask allows. */
  threads?: number;
  /** Highest CPU instruction set to use; default: the fastest. */
  simd?: SimdLevel;
  /** Type of the weights in memory; default: the file's. */
  dtype?: WeightDtype;
  /** Type of the cache's rows; default: the weights'. */
  cacheDtype?: WeightDtype;
  /** Resident bytes of the cache at most; default: no limit. */
  cacheLimitBytes?: number;
  /** Called while weights are read. */
  onProgress?: (progress: LoadProgress) => void;
  /** Cancels loading. */
  signal?: AbortSignal;
}

/** Splits `cuda:1` into build and index. */
export function parseDevice(
  name: string,
): { kind: DeviceKind; ordinal: number } {
  const match = /^(cpu|cuda)(?::(\d+))?$/.exec(name);
  if (!match || (match[1] === "cpu" && match[2] !== undefined)) {
    throw new RangeError(
      `Cannot open device as its name must be cpu, cuda or cuda:N: name is "${name}"`,
    );
  }
  return { kind: match[1] as DeviceKind, ordinal: Number(match[2] ?? 0) };
}

/** What the library must know of a model that is kept in memory as `dtype`. */
export function nativeConfig(
  config: ModelConfig,
  dtype: WeightDtype,
): NativeModelConfig {
  const {
    layers,
    hidden,
    queryHeads,
    kvHeads,
    headDim,
    intermediate,
    vocab,
    normEps,
    ropeScale,
  } = config;
  const { qkvBias, oBias, qkNorm, normExpertProb, experts, expertsUsed } =
    config;
  return {
    layers,
    hidden,
    queryHeads,
    kvHeads,
    headDim,
    intermediate,
    vocab,
    weightDtype: dtype,
    normEps,
    ropeScale,
    inverseFrequencies: Float32Array.from(config.invFreq),
    layerWindows: [...config.layerWindow],
    qkvBias,
    oBias,
    qkNorm,
    tiedEmbedding: config.tied,
    normExpertProb,
    experts,
    expertsUsed,
  };
}

/** Hands the rows that the loader reads to the library. */
function weightSink(native: NativeModel): WeightSink {
  const tensors = Object.keys(TENSOR_KINDS) as TensorName[];
  const dtypes = Object.keys(WEIGHT_DTYPES) as WeightDtype[];
  return {
    begin: (buffer) => native.source(buffer),
    load(kind, layer, expert, dtype, firstRow, rows, data) {
      native.load({
        tensor: tensors[kind]!,
        layer,
        expert,
        dtype: dtypes[dtype]!,
        firstRow,
        rows,
      }, data);
    },
    ready: () => native.ready(),
  };
}

/** A loaded model with its device and one cache. */
export class LanguageModel implements Disposable {
  /** The folder it came from: config, tokenizer, stop tokens, hash. */
  get folder(): ModelFolder {
    if (this.#folder === undefined) {
      throw new TypeError(
        "Cannot use the model's folder as it must have one: its weights are random",
      );
    }
    return this.#folder;
  }
  #folder: ModelFolder | undefined;
  /** Where it runs. */
  readonly device: Device;
  /** The weights. */
  readonly native: NativeModel;
  /** Where its sequences live. */
  readonly cache: Cache;
  /** Facts that policies may depend on. */
  readonly shape: ModelShape;
  /** Resolved types, CPU threads in use, and the time loading took. */
  readonly facts: {
    dtype: WeightDtype;
    cacheDtype: WeightDtype;
    threads: number;
    loadMs: number;
  };

  private constructor(
    folder: ModelFolder | undefined,
    config: ModelConfig,
    device: Device,
    native: NativeModel,
    cache: Cache,
    facts: LanguageModel["facts"],
  ) {
    this.#folder = folder;
    this.device = device;
    this.native = native;
    this.cache = cache;
    this.facts = facts;
    const { layers, queryHeads, kvHeads, headDim } = config;
    this.shape = { layers, queryHeads, kvHeads, headDim };
  }

  /** Opens a Hugging Face model folder and loads its weights. */
  static async load(
    path: string,
    options: LanguageModelOptions = {},
  ): Promise<LanguageModel> {
    const started = performance.now();
    const folder = openModelFolder(path);
    using stack = new DisposableStack();
    const model = stack.use(
      LanguageModel.#create(folder, folder.config, options),
    );
    await loadWeights(folder.plan, folder.config, weightSink(model.native), {
      ...(options.onProgress ? { onProgress: options.onProgress } : {}),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    model.facts.loadMs = performance.now() - started;
    stack.move();
    return model;
  }

  /** Makes a model of a `config.json`'s shape with random weights, for measurements. It has no folder. */
  static random(
    configFile: string,
    options: LanguageModelOptions & { seed?: number } = {},
  ): LanguageModel {
    const started = performance.now();
    const model = LanguageModel.#create(
      undefined,
      readModelConfig(configFile),
      options,
    );
    try {
      model.native.randomize(options.seed ?? 0);
    } catch (error) {
      model[Symbol.dispose]();
      throw error;
    }
    model.facts.loadMs = performance.now() - started;
    return model;
  }

  static #create(
    folder: ModelFolder | undefined,
    config: ModelConfig,
    options: LanguageModelOptions,
  ): LanguageModel {
    const dtype = options.dtype ?? config.dtype;
    const cacheDtype = options.cacheDtype ?? dtype;
    const { layers, queryHeads, kvHeads, headDim } = config;
    using stack = new DisposableStack();
    const device = stack.use(
      new Device({
        ...parseDevice(options.device ?? "cpu"),
        ...(options.library ? { library: options.library } : {}),
        threads: options.threads ?? 0,
        ...(options.simd === undefined ? {} : { simd: options.simd }),
      }),
    );
    const native = stack.use(
      new NativeModel(device, nativeConfig(config, dtype)),
    );
    const cache = stack.use(
      new Cache(device, {
        layers,
        queryHeads,
        kvHeads,
        headDim,
        rowDtype: cacheDtype,
        limitBytes: options.cacheLimitBytes ?? 0,
      }),
    );
    stack.move();
    return new LanguageModel(folder, config, device, native, cache, {
      dtype,
      cacheDtype,
      threads: device.info().threads,
      loadMs: 0,
    });
  }

  /** Frees weights, cache and device. */
  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
    this.native[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }
}
