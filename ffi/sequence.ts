/**
 * One sequence of a cache: what it holds, how it is filled, and how policies act on it.
 *
 * @module
 */
import type {
  Granularity,
  LayerContext,
  Observation,
  Policy,
} from "../methods/types.ts";
import {
  checkChoice,
  checkInteger,
  checkIntegers,
  checkLength,
} from "./_check.ts";
import { Native } from "./_native.ts";
import {
  callSequence,
  readPackedCounts,
  readRowCounts,
  type SequenceState,
} from "./_state.ts";
import { GRANULARITIES, SEQUENCE_INFO } from "./_structs.ts";
import type { CachePointer } from "./_symbols.ts";
import type { Cache } from "./cache.ts";
import { actOnLayer, NativeLayer } from "./layer.ts";
import { type NativeModel, nativeModel } from "./model.ts";
import {
  encodeObservation,
  type MergedObservation,
  mergeObservations,
  NO_OBSERVATION,
} from "./observe.ts";
import { makePrefill, type Prefill } from "./prefill.ts";
import { recordProgram, setProgram } from "./program.ts";
import { encodeSampling, type Sampling } from "./sampling.ts";

/** Facts about a sequence. */
export interface SequenceInfo {
  /** What a stored head is. */
  granularity: Granularity;
  /** Heads of the cache. */
  storedHeads: number;
  /** Position of the next token: tokens seen so far. */
  position: number;
  /** Tokens generated so far. */
  generated: number;
  /** A stop token was drawn. */
  finished: boolean;
  /** Bytes that its rows and formats need by arithmetic. */
  promisedBytes: number;
  /** Bytes of the pages in its tables. */
  ownedBytes: number;
}

/** A layer that frees what was made through it on dispose. */
export interface LayerScope extends LayerContext, Disposable {}

/** Tensors of one layer, rotation applied. */
export interface RecordedLayer {
  /** Queries `[queryHeads, tokens, headDim]`. */
  q: Float32Array;
  /** Keys `[kvHeads, tokens, headDim]`. */
  k: Float32Array;
  /** Values `[kvHeads, tokens, headDim]`. */
  v: Float32Array;
}

let make: (cache: Cache, state: SequenceState) => Sequence;
let stateOf: (sequence: Sequence) => SequenceState;

/** What is known of a sequence before its prompt is read. */
export interface PromptOptions {
  /** Bytes that the rows of all layers will take when policies have acted on them. Left out: not known. */
  keptBytes?: number;
}

/** A sequence. Made by `Cache.sequence` or {@linkcode Sequence.fork}. */
export class Sequence implements Disposable {
  static {
    make = (cache, state) => new Sequence(cache, state);
    stateOf = (sequence) => sequence.#state;
  }

  /** The cache it belongs to. */
  readonly cache: Cache;
  #state: SequenceState;

  private constructor(cache: Cache, state: SequenceState) {
    this.cache = cache;
    this.#state = state;
  }

  /** What a stored head is. */
  get granularity(): Granularity {
    return this.#state.granularity;
  }

  /** Heads of the cache: KV heads or query heads, by granularity. */
  get storedHeads(): number {
    return this.#state.storedHeads;
  }

  /** What its prefill recorded. */
  get observation(): MergedObservation {
    return this.#state.observation;
  }

  /**
   * A copy that shares all pages until one of both changes them; observations, logits and sampling are copied too.
   * @param granularity that of the copy, when it differs: a `kv_head` sequence may be forked into `query_head`
   */
  fork(granularity: Granularity = this.granularity): Sequence {
    const { observation, vocab, id } = this.#state;
    id.pointer;
    const state = openSequence(
      this.#state.cache,
      this.cache,
      granularity,
      () =>
        callSequence(
          this.#state,
          "kvf_sequence_fork",
          granularityCode("fork Sequence", granularity),
        ),
    );
    return new Sequence(this.cache, {
      ...state,
      observation,
      kept: { ...this.#state.kept },
      vocab,
    });
  }

  /** Reads the facts. */
  describe(): SequenceInfo {
    const bytes = SEQUENCE_INFO.empty();
    callSequence(this.#state, "kvf_sequence_describe", bytes);
    const info = SEQUENCE_INFO.decode(bytes);
    return {
      granularity: GRANULARITIES[info.granularity] ?? "kv_head",
      storedHeads: info.n_stored_head,
      position: info.position,
      generated: info.n_generated,
      finished: info.finished === 1,
      promisedBytes: info.promised_bytes,
      ownedBytes: info.owned_bytes,
    };
  }

  /** Rows held, per layer and stored head. */
  rows(): number[][] {
    return this.#perLayer(readRowCounts(this.#state));
  }

  /** Rows in packed pages, per layer and stored head. */
  packedRows(): number[][] {
    return this.#perLayer(readPackedCounts(this.#state));
  }

  #perLayer(counts: Uint32Array): number[][] {
    const { storedHeads } = this;
    return Array.from(
      { length: this.cache.config.layers },
      (_, i) => [...counts.subarray(i * storedHeads, (i + 1) * storedHeads)],
    );
  }

  /** Bytes of the pages in each head's table, per layer and stored head. */
  bytes(): number[][] {
    const { storedHeads } = this;
    const { layers } = this.cache.config;
    const bytes = new Float64Array(layers * storedHeads);
    callSequence(this.#state, "kvf_sequence_bytes", bytes, bytes.length);
    return Array.from(
      { length: layers },
      (_, i) => [...bytes.subarray(i * storedHeads, (i + 1) * storedHeads)],
    );
  }

  /** Sets how the tokens to come are drawn. */
  setSampling(sampling: Sampling): void {
    const encoded = encodeSampling(sampling);
    callSequence(
      this.#state,
      "kvf_sequence_sampling",
      encoded.sampling,
      encoded.stop,
      encoded.stop.length,
    );
  }

  /** Frees the observations: nothing will ask for scores again. */
  forget(): void {
    callSequence(this.#state, "kvf_sequence_forget");
    this.#state.observation = NO_OBSERVATION;
  }

  /** Logits that the next token will be drawn from: `[vocab]`. */
  logits(): Float32Array<ArrayBuffer> {
    const logits = new Float32Array(this.#state.vocab);
    callSequence(this.#state, "kvf_sequence_logits", logits, logits.length);
    return logits;
  }

  /**
   * Begins to read a prompt into the empty sequence.
   * @param model the model
   * @param tokens ids
   * @param observation what to record
   * @param options what is known of the sequence
   * @throws {NativeError} of the kind `memory`, with the bytes that are needed and free, when its rows cannot fit
   */
  prefill(
    model: NativeModel,
    tokens: ArrayLike<number>,
    observation: Observation | MergedObservation = NO_OBSERVATION,
    { keptBytes = 0 }: PromptOptions = {},
  ): Prefill {
    const action = "begin prefill";
    checkInteger(action, "the number of tokens", tokens.length, 1);
    checkModel(action, model, this.cache);
    if (!(keptBytes >= 0 && keptBytes < Infinity)) {
      throw new RangeError(
        `Cannot ${action} as keptBytes must be >= 0 and finite: keptBytes is ${keptBytes}`,
      );
    }
    const { vocab, layers } = model.config;
    const ids = checkIntegers(action, "tokens", tokens, vocab - 1);
    const merged = mergeObservations([observation as Observation]);
    const { observe, ranges } = encodeObservation(merged, ids.length);
    const native = nativeModel(model);
    const { cache, id } = this.#state;
    cache.library.status(
      "kvf_prefill_begin",
      native.pointer,
      cache.pointer,
      id.pointer,
      ids,
      ids.length,
      keptBytes,
      observe,
      ranges,
    );
    this.#state.observation = merged;
    return makePrefill(this.#state, native, {
      layers,
      tokens: ids.length,
      vocab,
    });
  }

  /**
   * Begins to fill the empty sequence from recorded tensors in place of a model.
   * @param tokens prompt tokens
   * @param observation what to record
   * @param inverseFrequencies angle per position of each rotated pair of the keys, `[headDim / 2]`; formats that undo the
   * rotation need it
   */
  record(
    tokens: number,
    observation: Observation | MergedObservation = NO_OBSERVATION,
    inverseFrequencies?: Float32Array,
  ): void {
    checkInteger("record Sequence", "tokens", tokens, 1);
    const merged = mergeObservations([observation as Observation]);
    const { observe, ranges } = encodeObservation(merged, tokens);
    callSequence(this.#state, "kvf_record_begin", tokens, observe, ranges);
    if (inverseFrequencies !== undefined) {
      const angles = Float32Array.from(inverseFrequencies);
      callSequence(this.#state, "kvf_record_rotation", angles, angles.length);
    }
    this.#state.observation = merged;
    this.#recorded = tokens;
  }

  /** Fills one layer after {@linkcode Sequence.record}. */
  recordLayer(layer: number, tensors: RecordedLayer): void {
    const action = "record layer";
    const { queryHeads, kvHeads, headDim, layers } = this.cache.config;
    checkInteger(action, "layer", layer, 0, layers - 1);
    const { q, k, v } = tensors;
    const size = this.#recorded * headDim;
    checkLength(action, "q", q, queryHeads * size);
    checkLength(action, "k", k, kvHeads * size);
    checkLength(action, "v", v, kvHeads * size);
    // Shared memory is as good as any other; only the declared type of buffers does not say so.
    callSequence(
      this.#state,
      "kvf_record_layer",
      layer,
      q as Float32Array<ArrayBuffer>,
      k as Float32Array<ArrayBuffer>,
      v as Float32Array<ArrayBuffer>,
    );
  }
  #recorded = 0;

  /** Opens a layer for a policy. Everything made through it is freed when the scope is disposed. */
  layer(index: number): LayerScope {
    return new NativeLayer(this.#state, index);
  }

  /** Lets a policy act on one layer whose rows are there, before its attention runs. */
  prepare(policy: Policy, layer: number): void {
    using scope = new NativeLayer(this.#state, layer);
    policy.beforeAttention?.(scope);
  }

  /**
   * Lets a policy act on one layer whose rows are complete, frees everything it made, and records what the policy does in
   * every decode step.
   * @throws {RangeError} when the layer then holds more rows than `policy.maxRows` says
   */
  act(policy: Policy, layer: number): void {
    const native = new NativeLayer(this.#state, layer);
    actOnLayer(native, policy, (scope) => policy.afterPrefill?.(scope));
    if (policy.decode === undefined && policy.again === undefined) return;
    const { layers, queryHeads, kvHeads, headDim } = this.cache.config;
    setProgram(
      this.#state,
      layer,
      recordProgram(policy, {
        layers,
        queryHeads,
        kvHeads,
        headDim,
        layer,
        rows: [...native.rowCounts()],
        observation: this.#state.observation,
      }),
    );
  }

  /**
   * Lets a policy act again on one layer, in the middle of a generation.
   * @throws {RangeError} when the layer then holds more rows than `policy.maxRows` says
   */
  actAgain(policy: Policy, layer: number): void {
    actOnLayer(
      new NativeLayer(this.#state, layer),
      policy,
      (scope) => policy.again?.act(scope),
    );
  }

  /**
   * Rows of a stored head that the next step's attention would read, were its query the last one that was recorded or
   * kept: all of them, or those that the layer's page choice takes.
   */
  attendedRows(layer: number, head: number): Uint32Array<ArrayBuffer> {
    const rows = new Uint32Array(this.#headRows("read rows", layer, head));
    if (!this.#state.kept[layer]?.pages) return rows.map((_, i) => i);
    const count = callSequence(
      this.#state,
      "kvf_program_rows",
      layer,
      head,
      rows,
      rows.length,
    );
    return rows.subarray(0, count);
  }

  /** Feeds given tokens through the decode path on another thread; their last logits become the sequence's. */
  async extend(model: NativeModel, tokens: ArrayLike<number>): Promise<void> {
    const action = "extend Sequence";
    checkInteger(action, "the number of tokens", tokens.length, 1);
    checkModel(action, model, this.cache);
    const { vocab } = model.config;
    const ids = checkIntegers(action, "tokens", tokens, vocab - 1);
    const native = nativeModel(model);
    const { cache, id } = this.#state;
    using _model = native.enter();
    using _cache = cache.enter();
    using _sequence = id.enter();
    await cache.library.statusAsync(
      "kvf_extend_async",
      native.pointer,
      cache.pointer,
      id.pointer,
      ids,
      ids.length,
    );
    this.#state.vocab = vocab;
  }

  /** Keys or values that a stored head holds: `[rows, headDim]`. */
  readRows(
    layer: number,
    head: number,
    what: "keys" | "values",
  ): Float32Array<ArrayBuffer> {
    const action = "read rows";
    const rows = this.#headRows(action, layer, head);
    const out = new Float32Array(rows * this.cache.config.headDim);
    callSequence(
      this.#state,
      "kvf_read_rows",
      layer,
      head,
      checkChoice(action, "what", what, ["keys", "values"]),
      out,
      out.byteLength,
    );
    return out;
  }

  /** Logical position of each row that a stored head holds: `[rows]`, ascending. */
  positions(layer: number, head: number): Uint32Array<ArrayBuffer> {
    const out = new Uint32Array(
      this.#headRows("read positions", layer, head),
    );
    callSequence(
      this.#state,
      "kvf_read_positions",
      layer,
      head,
      out,
      out.length,
    );
    return out;
  }

  /**
   * Attention of a layer, reduced over blocks of `block` tokens: the mean over a block's recorded queries of the
   * probability that they give to all rows of a block. Needs `windowQueries` recorded; with as many as the prompt has
   * tokens the map is whole, otherwise blocks without a recorded query are 0.
   * @returns `[queryHeads, blocks, blocks]`, query block before row block
   */
  attentionMap(layer: number, block: number): Float32Array<ArrayBuffer> {
    const action = "map attention";
    const { layers, queryHeads } = this.cache.config;
    checkInteger(action, "layer", layer, 0, layers - 1);
    checkInteger(action, "block", block, 1);
    const rows = this.#headRows(action, layer, 0);
    const map = new Float32Array(queryHeads * Math.ceil(rows / block) ** 2);
    callSequence(
      this.#state,
      "kvf_attention_map",
      layer,
      block,
      map,
      map.byteLength,
    );
    return map;
  }

  /** Frees its pages. A second call does nothing. */
  [Symbol.dispose](): void {
    this.#state.id.dispose();
  }

  #headRows(action: string, layer: number, head: number): number {
    const { layers } = this.cache.config;
    checkInteger(action, "layer", layer, 0, layers - 1);
    checkInteger(action, "head", head, 0, this.storedHeads - 1);
    return readRowCounts(this.#state)[layer * this.storedHeads + head] ?? 0;
  }
}

function granularityCode(action: string, granularity: Granularity): number {
  return checkChoice(action, "granularity", granularity, GRANULARITIES);
}

function openSequence(
  native: Native<CachePointer>,
  cache: Cache,
  granularity: Granularity,
  open: () => number,
): SequenceState {
  const { library, pointer } = native;
  const { queryHeads, kvHeads } = cache.config;
  const id = new Native("Sequence", library, open(), (id) => {
    native.whenIdle(() => library.status("kvf_sequence_free", pointer, id));
  }, [native]);
  return {
    cache: native,
    id,
    shape: cache.config,
    granularity,
    storedHeads: granularity === "query_head" ? queryHeads : kvHeads,
    observation: NO_OBSERVATION,
    kept: {},
    vocab: 0,
  };
}

/** Makes an empty sequence of a cache. */
export function createSequence(
  cache: Cache,
  native: Native<CachePointer>,
  granularity: Granularity,
): Sequence {
  const state = openSequence(
    native,
    cache,
    granularity,
    () =>
      native.library.status(
        "kvf_sequence_create",
        native.pointer,
        granularityCode("create Sequence", granularity),
      ),
  );
  return make(cache, state);
}

/** The native side of a sequence, for batches. */
export function sequenceState(sequence: Sequence): SequenceState {
  return stateOf(sequence);
}

/** Throws unless a model and a cache have the same shape and device. */
export function checkModel(
  action: string,
  model: NativeModel,
  cache: Cache,
): void {
  if (model.device !== cache.device) {
    throw new TypeError(
      `Cannot ${action} as model and cache must be on one device: "${model.device.kind}" and "${cache.device.kind}"`,
    );
  }
  for (const name of ["layers", "queryHeads", "kvHeads", "headDim"] as const) {
    if (model.config[name] === cache.config[name]) continue;
    throw new RangeError(
      `Cannot ${action} as model and cache must have the same ${name}: ${
        model.config[name]
      } and ${cache.config[name]}`,
    );
  }
}
