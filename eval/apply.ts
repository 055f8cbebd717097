/**
 * Runs a method on recorded tensors, without a model: the way to look at what a method keeps.
 *
 * @module
 */
import {
  Cache,
  type Device,
  mergeObservations,
  type RecordedLayer,
} from "../ffi/mod.ts";
import {
  type Granularity,
  type Method,
  type ModelShape,
  resolveOptions,
} from "../methods/mod.ts";

/** What {@linkcode applyMethod} needs. */
export interface ApplyRequest<Options> extends RecordedLayer {
  /** The method. */
  method: Method<Options>;
  /** Its options as given; defaults are filled in. */
  options: Readonly<Record<string, unknown>>;
  /** Heads of the tensors. */
  shape: Omit<ModelShape, "layers">;
  /** Layout of the cache. */
  granularity: Granularity;
  /** Which layer the tensors are taken for, from 0; 0 when missing. */
  layer?: number;
  /** Layers of the model they are from; `layer + 1` when missing. */
  layers?: number;
  /** Where it runs. */
  device: Device;
  /**
   * Keys and values of the layer before, `[kvHeads, tokens, headDim]`, for methods that act on neighbouring layers; `layer`
   * is then at least 1.
   */
  lower?: Pick<RecordedLayer, "k" | "v">;
  /** Angle per position of each rotated pair of the keys, `[headDim / 2]`, for methods that undo the rotation. */
  inverseFrequencies?: Float32Array;
  /** Return the rows kept, too. */
  rows?: boolean;
}

/** What a method kept, or, where it keeps everything, what it would read for the last query. */
export interface Applied<Options> {
  /** Options as resolved. */
  options: Options;
  /** Kept positions of each stored head, ascending. */
  positions: number[][];
  /** Keys of each stored head, `[rows, headDim]`, when asked for. */
  keys?: Float32Array<ArrayBuffer>[];
  /** Values of each stored head, `[rows, headDim]`, when asked for. */
  values?: Float32Array<ArrayBuffer>[];
  /** What became of the layer before, when it was given and rows were asked for. */
  lower?: {
    /** Keys of each stored head, `[rows, headDim]`. */
    keys: Float32Array<ArrayBuffer>[];
    /** Values of each stored head, `[rows, headDim]`. */
    values: Float32Array<ArrayBuffer>[];
  };
}

/**
 * Runs a method on the queries, keys and values of one layer.
 * @throws {TypeError} when the method is not defined for the granularity, or for wrong options
 * @throws {RangeError} when recorded tensors lack what the method acts on
 * @throws {RangeError} when sizes do not fit, or when the method keeps more than it says
 */
export function applyMethod<Options>(
  request: ApplyRequest<Options>,
): Applied<Options> {
  const { method, granularity, device, lower } = request;
  const { layer = 0, layers = layer + 1 } = request;
  if (!method.granularities.includes(granularity)) {
    throw new TypeError(
      `Cannot run "${method.name}" as it is defined for ${
        method.granularities.map((name) => `"${name}"`).join(", ")
      } only: granularity is "${granularity}"`,
    );
  }
  refuse(method, layer, lower !== undefined);
  const shape: ModelShape = { ...request.shape, layers };
  const tokens = request.k.length / (shape.kvHeads * shape.headDim);
  const options = resolveOptions(method, request.options);
  const policy = method.create(options, shape);
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence(granularity);
  // The last query shows what a method that chooses per query would read.
  sequence.record(
    tokens,
    mergeObservations([policy.observe, { windowQueries: 1 }]),
    request.inverseFrequencies,
  );
  if (lower !== undefined) {
    sequence.recordLayer(layer - 1, { ...lower, q: request.q });
    sequence.act(policy, layer - 1);
  }
  sequence.recordLayer(layer, request);
  sequence.prepare(policy, layer);
  sequence.act(policy, layer);
  const heads = Array.from({ length: sequence.storedHeads }, (_, h) => h);
  const read = heads.map((head) => sequence.attendedRows(layer, head));
  const rowsOf = (what: "keys" | "values") =>
    heads.map((head) =>
      take(sequence.readRows(layer, head, what), read[head]!, shape.headDim)
    );
  const before = (what: "keys" | "values") =>
    heads.map((head) => sequence.readRows(layer - 1, head, what));
  return {
    options,
    positions: heads.map((head) => {
      const positions = sequence.positions(layer, head);
      return Array.from(read[head]!, (row) => positions[row]!);
    }),
    ...(request.rows ? { keys: rowsOf("keys"), values: rowsOf("values") } : {}),
    ...(request.rows && lower !== undefined
      ? { lower: { keys: before("keys"), values: before("values") } }
      : {}),
  };
}

/** Refuses what recorded tensors cannot show. */
function refuse(
  { name, kind }: Pick<Method, "name" | "kind">,
  layer: number,
  hasLower: boolean,
): void {
  if (kind === "sparse") {
    throw new RangeError(
      `Cannot apply "${name}" to recorded tensors as it acts on the attention of prefill: they are what is left after it`,
    );
  }
  if (kind === "merge" && !hasLower) {
    throw new RangeError(
      `Cannot apply "${name}" to one layer as it acts on neighbouring layers: the keys and values of the layer before are missing`,
    );
  }
  if (hasLower && layer === 0) {
    throw new RangeError(
      "Cannot apply with a layer before as layer must be at least 1: it is 0",
    );
  }
}

/** Chosen rows of `[.., headDim]`. */
function take(
  all: Float32Array<ArrayBuffer>,
  rows: Uint32Array,
  headDim: number,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(rows.length * headDim);
  rows.forEach((row, i) =>
    out.set(all.subarray(row * headDim, (row + 1) * headDim), i * headDim)
  );
  return out;
}
