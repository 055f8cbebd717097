/**
 * Small things for native tests: a device with one thread, a model with random weights, recorded tensors.
 *
 * @module
 */
import { fromFileUrl } from "@std/path";
import { libraryPath } from "../../ffi/_library.ts";
import {
  Cache,
  Device,
  type DeviceKind,
  NativeModel,
  type Sequence,
} from "../../ffi/mod.ts";
import type { Observation } from "../../methods/types.ts";

const EMULATED = fromFileUrl(
  new URL("../../build/emulated/libkvf_cuda.so", import.meta.url),
);

/** Shape of the tiny model and cache: two query heads per KV head. */
export const SHAPE = { layers: 2, queryHeads: 4, kvHeads: 2, headDim: 8 };

/** Vocabulary of the tiny model. */
export const VOCAB = 32;

/**
 * The build that the tests run on: the one whose file may be opened, the CPU build where several may. So the same tests run
 * on the CPU, on a GPU and on the emulated CUDA build, by permission alone.
 */
export const BUILD: { kind: DeviceKind; library: string } = [
  { kind: "cpu", library: libraryPath("cpu") } as const,
  { kind: "cuda", library: libraryPath("cuda") } as const,
  { kind: "cuda", library: EMULATED } as const,
].find(({ library }) => mayOpen(library)) ??
  { kind: "cpu", library: libraryPath("cpu") };

/** Which kind of build it is. */
export const KIND: DeviceKind = BUILD.kind;

/** The same, as options of a language model. */
export const MODEL_BUILD = { device: BUILD.kind, library: BUILD.library };

function mayOpen(path: string): boolean {
  const permission = { name: "ffi", path } as const;
  return Deno.permissions.querySync(permission).state === "granted";
}

/** A device with one thread. */
export function openDevice(): Device {
  return new Device({ ...BUILD, threads: 1 });
}

/** A cache of f32 rows. */
export function openCache(device: Device): Cache {
  return new Cache(device, { ...SHAPE, rowDtype: "f32" });
}

/** What tiny models of any shape have in common. */
export const TINY = {
  hidden: 32,
  intermediate: 48,
  weightDtype: "f32",
  normEps: 1e-5,
  ropeScale: 1,
} as const;

/** Inverse frequencies of the rotation, base 10000. */
export function frequencies(headDim: number): Float32Array<ArrayBuffer> {
  return Float32Array.from(
    { length: headDim / 2 },
    (_, i) => 10000 ** (-2 * i / headDim),
  );
}

/** A model with random weights. */
export function openModel(device: Device): NativeModel {
  const model = new NativeModel(device, {
    ...SHAPE,
    ...TINY,
    vocab: VOCAB,
    inverseFrequencies: frequencies(SHAPE.headDim),
    layerWindows: [0, 0],
  });
  model.randomize(7);
  return model;
}

/** Numbers in [-1, 1) that look random and are always the same. */
export function noise(length: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed * 2654435761 + 1 >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Queries, keys and values of a layer of the tiny shape. */
export function tensors(tokens: number, seed = 1) {
  const { queryHeads, kvHeads, headDim } = SHAPE;
  return {
    q: noise(queryHeads * tokens * headDim, seed),
    k: noise(kvHeads * tokens * headDim, seed + 1),
    v: noise(kvHeads * tokens * headDim, seed + 2),
  };
}

/** Fills all layers of an empty sequence. */
export function recordAll(
  sequence: Sequence,
  tokens: number,
  observation: Observation = {},
): void {
  sequence.record(tokens, observation);
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    sequence.recordLayer(layer, tensors(tokens, 10 * layer + 1));
  }
}

/** Reads a prompt into a sequence. */
export async function read(
  model: NativeModel,
  sequence: Sequence,
  tokens: number[],
  observation: Observation = {},
): Promise<void> {
  const prefill = sequence.prefill(model, tokens, observation);
  await prefill.layers(0, prefill.layerCount);
  prefill.end();
}

/** Attention probabilities `[query, key]` of a query head over a causal layer, in double. */
export function attention(
  { q, k }: { q: Float32Array; k: Float32Array },
  tokens: number,
  head: number,
): number[][] {
  const { headDim, queryHeads, kvHeads } = SHAPE;
  const kvHead = Math.floor(head / (queryHeads / kvHeads));
  return Array.from({ length: tokens }, (_, i) => {
    const scores = Array.from({ length: i + 1 }, (_, j) => {
      let dot = 0;
      for (let d = 0; d < headDim; d++) {
        dot += (q[(head * tokens + i) * headDim + d] ?? NaN) *
          (k[(kvHead * tokens + j) * headDim + d] ?? NaN);
      }
      return dot / Math.sqrt(headDim);
    });
    const most = Math.max(...scores);
    const weights = scores.map((s) => Math.exp(s - most));
    const sum = weights.reduce((a, b) => a + b, 0);
    return Array.from(
      { length: tokens },
      (_, j) => (weights[j] ?? 0) / sum,
    );
  });
}

/** Throws unless two lists agree within `tolerance`, absolute plus relative. */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance = 2e-6,
): void {
  if (actual.length !== expected.length) {
    throw new Error(`Lengths are ${actual.length} and ${expected.length}`);
  }
  for (let i = 0; i < actual.length; i++) {
    const [a, b] = [actual[i] ?? NaN, expected[i] ?? NaN];
    if (!(Math.abs(a - b) <= tolerance * (1 + Math.abs(b)))) {
      throw new Error(`Element ${i} is ${a}, expected ${b}`);
    }
  }
}
