/**
 * The native side of a sequence, shared by the classes that act on it.
 *
 * @module
 */
import type { Granularity, ModelShape } from "../methods/types.ts";
import type { AsyncName, Library, StatusName } from "./_library.ts";
import type { Native } from "./_native.ts";
import type { CachePointer } from "./_symbols.ts";
import type { MergedObservation } from "./observe.ts";

/** What a step program keeps of a layer for scoring. */
export interface KeptObservation {
  /** Queries of the last tokens. */
  windowQueries: number;
  /** Attention chooses pages. */
  pages: boolean;
  /** The recorded column mass that goes on. */
  mass?: {
    /** Its index among the recorded ones. */
    index: number;
    /** Its query set. */
    key: string;
  };
}

/** A sequence of a cache. */
export interface SequenceState {
  /** The cache's handle. */
  readonly cache: Native<CachePointer>;
  /** The sequence's id. */
  readonly id: Native<number>;
  /** The cache's shape. */
  readonly shape: ModelShape;
  /** What a stored head is. */
  readonly granularity: Granularity;
  /** Heads of the cache. */
  readonly storedHeads: number;
  /** What was recorded for it. */
  observation: MergedObservation;
  /** What each layer's step program keeps for scoring during generation. */
  readonly kept: Record<number, KeptObservation>;
  /** Elements of its logits; 0 before prefill. */
  vocab: number;
}

/** The arguments of a function of a sequence, without the cache, the sequence and the error buffer. */
export type SequenceArguments<N extends StatusName | AsyncName> = Parameters<
  Library["functions"][N]
> extends
  readonly [CachePointer | null, number, ...infer A, infer _Error, number] ? A
  : never;

/** Functions whose first two parameters are a cache and one of its sequences (or objects). */
export type SequenceCall = {
  [N in StatusName]: SequenceArguments<N> extends never ? never : N;
}[StatusName];

/** Calls a function of a sequence; returns its status or id. */
export function callSequence<N extends SequenceCall>(
  state: SequenceState,
  name: N,
  ...args: SequenceArguments<N>
): number {
  const { library } = state.cache;
  const call = library.status.bind(library) as (
    name: N,
    ...args: unknown[]
  ) => number;
  const id = state.id.pointer;
  return call(name, state.cache.pointer, id, ...args);
}

/** Rows of every layer and stored head: `[layers, storedHeads]`. */
export function readRowCounts(
  state: SequenceState,
): Uint32Array<ArrayBuffer> {
  const rows = new Uint32Array(state.shape.layers * state.storedHeads);
  callSequence(state, "kvf_sequence_rows", rows, rows.length);
  return rows;
}

/** How many of them are packed: `[layers, storedHeads]`. */
export function readPackedCounts(
  state: SequenceState,
): Uint32Array<ArrayBuffer> {
  const rows = new Uint32Array(state.shape.layers * state.storedHeads);
  callSequence(state, "kvf_sequence_packed", rows, rows.length);
  return rows;
}
