/**
 * A method on tensors that somebody recorded: the queries, keys and values of one layer in a safetensors file.
 *
 * @module
 */
import { Device } from "../ffi/mod.ts";
import { type AnyMethod, loadMethod } from "../methods/mod.ts";
import type { Granularity } from "../methods/types.ts";
import { readTensor } from "../models/mod.ts";
import { type Applied, applyMethod } from "./apply.ts";
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
  /** Names of the queries `[queryHeads, tokens, headDim]`, keys and values `[kvHeads, tokens, headDim]`. Default q, k, v. */
  names?: { q: string; k: string; v: string };
  /** What one stored head is. Default `kv_head`. */
  granularity?: Granularity;
  /** Which layer the tensors are taken for, from 0. Default 0. */
  layer?: number;
  /** Layers of the model that they are from. Default `layer + 1`. */
  layers?: number;
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
  const [q, k, v] = [names.q, names.k, names.v].map((name) => {
    const tensor = readTensor(input, name);
    if (tensor.shape.length === 3) return tensor;
    throw new RangeError(
      `Cannot use tensor "${name}" of ${input} as its shape must be [heads, tokens, headDim]: it is [${tensor.shape}]`,
    );
  });
  const [queryHeads, tokens, headDim] = q!.shape as [number, number, number];
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
  using device = new Device();
  const applied = applyMethod<Record<string, unknown>>({
    method,
    options: request.options ?? {},
    q: Float32Array.from(q!.data),
    k: Float32Array.from(k!.data),
    v: Float32Array.from(v!.data),
    shape: { queryHeads, kvHeads: k!.shape[0]!, headDim },
    granularity,
    layer,
    layers: Math.max(layers, layer + 1),
    device,
    rows: request.rows ?? false,
  });
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
