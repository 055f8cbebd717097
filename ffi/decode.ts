/**
 * Producing tokens: whole steps of a batch in one native call.
 *
 * @module
 */
import { checkInteger } from "./_check.ts";
import { type CallOptions, controlled } from "./_control.ts";
import { type Cache, nativeCache } from "./cache.ts";
import { type NativeModel, nativeModel } from "./model.ts";
import { checkModel, type Sequence, sequenceState } from "./sequence.ts";

/** What the library writes where a sequence had finished before. */
const NO_TOKEN = 0xffffffff;

/** Options of {@linkcode decode}. */
export interface DecodeOptions extends CallOptions {
  /** Return the logits that each token was drawn from. */
  logits?: boolean;
}

/** The tokens of a batch. */
export interface Decoded {
  /** New tokens of each sequence, the stop token included; shorter where a sequence finished. */
  tokens: Uint32Array<ArrayBuffer>[];
  /** Logits that each token was drawn from, `[steps, sequences, vocab]`, when asked for. */
  logits?: Float32Array<ArrayBuffer>;
}

/**
 * Runs up to `steps` steps of a batch on another thread. Results of a sequence do not depend on the others.
 * @param model the model
 * @param cache the cache that holds the sequences
 * @param sequences the batch; each once
 * @param steps tokens per sequence at most
 * @param options logits, cancelling, progress in steps
 * @returns a promise of the tokens; it rejects with the signal's reason when cancelled
 */
export async function decode(
  model: NativeModel,
  cache: Cache,
  sequences: readonly Sequence[],
  steps: number,
  options: DecodeOptions = {},
): Promise<Decoded> {
  const action = "decode";
  checkInteger(action, "steps", steps, 1);
  checkInteger(action, "the number of sequences", sequences.length, 1);
  checkModel(action, model, cache);
  const states = sequences.map(sequenceState);
  if (new Set(states).size < states.length) {
    throw new TypeError(
      "Cannot decode as a batch must hold each sequence once: one is there twice",
    );
  }
  if (sequences.some((sequence) => sequence.cache !== cache)) {
    throw new TypeError(
      "Cannot decode as all sequences must belong to the cache: one belongs to another",
    );
  }
  const { vocab } = model.config;
  const ids = Uint32Array.from(states, (state) => state.id.pointer);
  const tokens = new Uint32Array(steps * ids.length).fill(NO_TOKEN);
  const logits = options.logits
    ? new Float32Array(steps * ids.length * vocab)
    : null;
  const nativeOfModel = nativeModel(model);
  const nativeOfCache = nativeCache(cache);
  using holds = new DisposableStack();
  for (const native of [nativeOfModel, nativeOfCache]) {
    holds.use(native.enter());
  }
  for (const state of states) holds.use(state.id.enter());
  await controlled(
    options,
    (control) =>
      nativeOfCache.library.statusAsync(
        "kvf_decode_async",
        nativeOfModel.pointer,
        nativeOfCache.pointer,
        ids,
        ids.length,
        steps,
        tokens,
        logits,
        logits?.byteLength ?? 0,
        control,
      ),
  );
  for (const state of states) state.vocab = vocab;
  return {
    tokens: sequences.map((_, i) => column(tokens, i, sequences.length)),
    ...(logits === null ? {} : { logits }),
  };
}

/** Tokens of one sequence out of `[steps, sequences]`, up to its end. */
function column(
  tokens: Uint32Array<ArrayBuffer>,
  index: number,
  width: number,
): Uint32Array<ArrayBuffer> {
  const own = tokens.filter((_, i) => i % width === index);
  const end = own.indexOf(NO_TOKEN);
  return end < 0 ? own : own.subarray(0, end);
}
