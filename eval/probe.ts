/**
 * A method on tensors that somebody recorded: the queries, keys and values of one layer in a safetensors file.
 *
 * @module
 */
import { Device, NativeError } from "../ffi/mod.ts";
import { type AnyMethod, loadMethod } from "../methods/mod.ts";
import type { Granularity } from "../methods/types.ts";
import { readTensor } from "../models/mod.ts";
import { type Applied, applyMethod, type ApplyRequest } from "./apply.ts";
import {
  fileHash,
  grantedPermissions,
  runMeta,
  sourceState,
} from "./provenance/mod.ts";
import { type JsonObject, type RunMeta, WHOLE } from "./records/mod.ts";

/** What {@linkcode probe} runs. */
export interface ProbeRequest {
  /** A safetensors file. */
  input: string;
  /** A method, by name, by file, or as it is. */
  method: AnyMethod | string;
  /** Its options. */
  options?: Readonly<Record<string, unknown>>;
  /**
   * Names of the queries `[queryHeads, tokens, headDim]`, keys and values `[kvHeads, tokens, headDim]`, each maybe with a
   * batch of 1 before them. Default q, k, v. `lowerK` and `lowerV`: those of the layer before, for methods that act on both.
   */
  names?: {
    q: string;
    k: string;
    v: string;
    lowerK?: string | undefined;
    lowerV?: string | undefined;
  };
  /** What one stored head is. Default `kv_head`. */
  granularity?: Granularity;
  /** Which layer the tensors are taken for, from 0. Default 0. */
  layer?: number;
  /** Layers of the model that they are from. Default `layer + 1`. */
  layers?: number;
  /** Base of the rotation that the keys have, for methods that undo it. */
  ropeTheta?: number | undefined;
  /** Return the kept rows, too. */
  rows?: boolean;
}

/** What {@linkcode probe} found. */
export interface Probed extends Applied<Record<string, unknown>> {
  /** Elements of a row. */
  headDim: number;
  /** Versions, machine, permissions, options and the hash of the input. */
  manifest: RunMeta;
}

/**
 * Runs a method on recorded tensors, without a model.
 *
 * @throws SyntaxError for a broken file, TypeError and RangeError for tensors and options that do not fit
 */
export async function probe(request: ProbeRequest): Promise<Probed> {
  const { input, granularity = "kv_head", layer = 0, layers = 0 } = request;
  const method = typeof request.method === "string"
    ? await loadMethod(request.method)
    : request.method;
  const names = request.names ?? { q: "q", k: "k", v: "v" };
  const [q, k, v] = [names.q, names.k, names.v]
    .map((name) => readHeads(input, name));
  const [queryHeads, tokens, headDim] = q!.shape;
  if (
    k!.shape[1] !== tokens || k!.shape[2] !== headDim ||
    String(v!.shape) !== String(k!.shape)
  ) {
    throw new RangeError(
      `Cannot apply as q, k and v must have equal tokens and headDim: they are [${
        q!.shape
      }], [${k!.shape}], [${v!.shape}]`,
    );
  }
  const lower = readLower(input, names, k!.shape);
  using device = new Device();
  const applied = applyOrExplain({
    method,
    options: request.options ?? {},
    q: q!.data,
    k: k!.data,
    v: v!.data,
    ...(lower === undefined ? {} : { lower }),
    ...(request.ropeTheta === undefined ? {} : {
      inverseFrequencies: Float32Array.from(
        { length: headDim >> 1 },
        (_, i) => request.ropeTheta! ** (-2 * i / headDim),
      ),
    }),
    shape: { queryHeads, kvHeads: k!.shape[0], headDim },
    granularity,
    layer,
    layers: Math.max(layers, layer + 1),
    device,
    rows: request.rows ?? false,
  }, request.ropeTheta);
  const manifest = runMeta({
    device,
    shard: { ...WHOLE },
    source: sourceState(),
    permissions: grantedPermissions({ read: [input], ffi: [device.path] }),
    options: JSON.parse(JSON.stringify({
      method: method.name,
      options: applied.options,
      granularity,
      layer,
    })) as JsonObject,
    hashes: { input: fileHash(input) },
  });
  return { ...applied, headDim, manifest };
}

/** A tensor of heads. */
interface Heads {
  shape: [heads: number, tokens: number, headDim: number];
  data: Float32Array;
}

/** Reads a tensor `[heads, tokens, headDim]`, maybe with a batch of 1 before. */
function readHeads(input: string, name: string): Heads {
  const { shape, data } = readTensor(input, name);
  const own = shape.length === 4 && shape[0] === 1 ? shape.slice(1) : shape;
  const [heads, tokens, headDim] = own;
  if (
    own.length === 3 && heads !== undefined && tokens !== undefined &&
    headDim !== undefined
  ) return { shape: [heads, tokens, headDim], data };
  throw new RangeError(
    `Cannot use tensor "${name}" of ${input} as its shape must be [heads, tokens, headDim], or that after a batch of 1: it is [${shape}]`,
  );
}

/** Keys and values of the layer before, where they are named. */
function readLower(
  input: string,
  { lowerK, lowerV }: NonNullable<ProbeRequest["names"]>,
  shape: readonly number[],
): { k: Float32Array; v: Float32Array } | undefined {
  if (lowerK === undefined && lowerV === undefined) return undefined;
  if (lowerK === undefined || lowerV === undefined) {
    throw new RangeError(
      `Cannot apply as the layer before must have keys and values: its ${
        lowerK === undefined ? "keys" : "values"
      } are missing`,
    );
  }
  const [k, v] = [lowerK, lowerV].map((name) => readHeads(input, name));
  for (const tensor of [k!, v!]) {
    if (String(tensor.shape) !== String(shape)) {
      throw new RangeError(
        `Cannot apply as both layers must have equal shapes: they are [${shape}] and [${tensor.shape}]`,
      );
    }
  }
  return { k: k!.data, v: v!.data };
}

/** Runs the method; where it undoes a rotation that nobody told, says what is missing. */
function applyOrExplain(
  request: ApplyRequest<Record<string, unknown>>,
  ropeTheta: number | undefined,
): Applied<Record<string, unknown>> {
  try {
    return applyMethod(request);
  } catch (error) {
    const missing = error instanceof NativeError && error.kind === "state" &&
      error.symbol === "kvf_pack" && ropeTheta === undefined;
    if (!missing) throw error;
    throw new RangeError(
      `Cannot apply "${request.method.name}" as the base of the keys' rotation must be given (ropeTheta, --rope-theta): it is missing`,
      { cause: error },
    );
  }
}
