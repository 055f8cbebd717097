/**
 * What one generation is asked for and what it returns.
 *
 * @module
 */
import type { Sequence } from "../../ffi/mod.ts";
import type { AnyMethod } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";

/** A method with resolved options: one column of a comparison. */
export interface Configuration {
  /** The method. */
  method: AnyMethod;
  /** Its options, all resolved. */
  options: Record<string, unknown>;
  /** What one stored head is. */
  granularity: Granularity;
}

/** How tokens are chosen and when generation ends. */
export interface GenerationOptions {
  /** New tokens at most. Default 128. */
  maxNewTokens?: number;
  /** 0 (default) is greedy. */
  temperature?: number;
  /** Sample from so many of the most likely tokens; 0 (default): all. */
  topK?: number;
  /** Sample from the smallest set of tokens with that probability; 1 (default): all. */
  topP?: number;
  /** Seed of the draws. Default 0. */
  seed?: number;
  /** Token ids that end the generation. */
  stop?: readonly number[];
  /** Stop tokens cannot be chosen before so many new tokens. Default 0. */
  minNewTokens?: number;
  /** Keep the logits that each token was taken from. */
  logits?: boolean;
  /** Called with the new tokens of every chunk of steps, for streaming. Only for a single configuration. */
  onTokens?: (tokens: readonly number[]) => void;
  /**
   * Called with the cache of a configuration when its policy has acted, and after every chunk of steps. It may read the
   * cache and must not change it.
   */
  inspect?: (configuration: Configuration, cache: Sequence) => void;
  /** Tokens per native call; smaller streams sooner. Default 16. */
  chunk?: number;
  /** Cancels between layers and steps. */
  signal?: AbortSignal;
}

/** A prompt and the configurations that answer it. */
export interface Job {
  /** Token ids, at least one. */
  prompt: ArrayLike<number>;
  /** At least one. */
  configurations: readonly Configuration[];
  /** How to generate. */
  options?: GenerationOptions;
}

/** Bytes and rows of a cache right after the policy acted, and the peak until the generation's end. */
export interface CacheReport {
  /** Rows per layer and stored head after prefill. */
  rows: number[][];
  /** What rows and formats need by arithmetic, after prefill. */
  promisedBytes: number;
  /** What the tables hold, after prefill. */
  residentBytes: number;
  /** Highest memory of the pool from the prompt's start to the answer's end, with all that ran beside it. */
  peakBytes: number;
}

/** Wall-clock times of one generation, milliseconds. */
export interface Timing {
  /** Reading the prompt, without the policy's work; shared by `sharedPrefill` configurations. */
  prefillMs: number;
  /** The policy's work after or during prefill. */
  compressMs: number;
  /** From the start of the prompt to the first token. */
  firstTokenMs: number;
  /** The decode steps that it took part in. */
  decodeMs: number;
  /** `decodeMs` over the new tokens; the batch decodes together. */
  decodeMsPerToken: number;
  /** Configurations that used the same prefill. */
  sharedPrefill: number;
  /** Sequences that decoded together, at most. */
  batch: number;
}

/** One generated answer. */
export interface Generation {
  /** Name of the method. */
  method: string;
  /** Its options, all resolved. */
  options: Record<string, unknown>;
  /** What one stored head is. */
  granularity: Granularity;
  /** Tokens of the prompt. */
  promptTokens: number;
  /** New tokens; a stop token that ended the generation is not among them. */
  tokens: number[];
  /** Why it ended. */
  stopReason: "stop" | "length";
  /** The stop token, if one ended it. */
  stopToken?: number;
  /** Rows and bytes. */
  cache: CacheReport;
  /** Times. */
  timing: Timing;
  /** Logits `[new tokens, vocab]`, the stop token's included, when asked for. */
  logits?: Float32Array;
}

/** A promise of the runtime was broken; never caught, always fatal to a run. */
export class InvariantError extends Error {
  /** Name of the class. */
  override name = "InvariantError";
}
