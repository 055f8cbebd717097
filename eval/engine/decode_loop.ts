/**
 * The decode loop: live sequences of any prompts and configurations in one batch, whole steps in one native call.
 *
 * @module
 */
import { decode, type Sequence } from "../../ffi/mod.ts";
import type { LanguageModel } from "./language_model.ts";
import { checkLedger, type Member } from "./memory.ts";
import type { CacheReport, Generation, GenerationOptions } from "./types.ts";

/** One live sequence: a configuration that answers a prompt. */
export interface Running extends Member, Disposable {
  /** Its cache; owned. */
  sequence: Sequence;
  /** What its caller asked for. */
  options: GenerationOptions;
  /** Tokens of the prompt. */
  promptTokens: number;
  /** Rows and bytes right after the policy acted; the peak grows until the end. */
  cache: CacheReport;
  /** When reading the prompt began, as `performance.now()`. */
  startedAt: number;
  /** Reading the prompt, without the policy's work. */
  prefillMs: number;
  /** Configurations that shared that. */
  sharedPrefill: number;
  /** The policy's work. */
  compressMs: number;
  /** From the start to the first token; missing before it. */
  firstTokenMs?: number;
  /** Time of the steps that it took part in. */
  decodeMs: number;
  /** Sequences that decoded together, at most. */
  batch: number;
  /** New tokens, without a stop token. */
  tokens: number[];
  /** Logits of each call, when asked for. */
  logits: Float32Array[];
  /** The stop token that ended it. */
  stopToken?: number;
}

/** Whether nothing is left to decode. */
export function isDone(one: Running): boolean {
  return one.stopToken !== undefined ||
    one.tokens.length >= maxNewTokens(one.options);
}

/** New tokens at most. */
export function maxNewTokens(options: GenerationOptions): number {
  return options.maxNewTokens ?? 128;
}

/** Steps that may run before something has to be looked at: a first token, an answer's end, a caller's chunk. */
function stepsOf(one: Running): number {
  if (one.firstTokenMs === undefined) return 1;
  const { again } = one.policy;
  return Math.min(
    one.options.chunk ?? 16,
    maxNewTokens(one.options) - one.tokens.length,
    again === undefined
      ? Infinity
      : again.every - one.tokens.length % again.every,
  );
}

/** Lets the policy act again where its time has come, and holds it to its promises. */
function actAgain(model: LanguageModel, one: Running): void {
  const { policy, sequence, tokens } = one;
  if (policy.again === undefined || tokens.length % policy.again.every !== 0) {
    return;
  }
  const before = performance.now();
  for (let layer = 0; layer < model.shape.layers; layer++) {
    sequence.actAgain(policy, layer);
  }
  checkLedger(one, sequence);
  one.compressMs += performance.now() - before;
}

/**
 * Decodes the next tokens of all sequences, none of which is done.
 *
 * @param model the model
 * @param live at least one
 * @param signal cancels between steps
 */
export async function decodeTogether(
  model: LanguageModel,
  live: readonly Running[],
  signal?: AbortSignal,
): Promise<void> {
  const steps = Math.min(...live.map(stepsOf));
  const started = performance.now();
  const result = await decode(
    model.native,
    model.cache,
    live.map(({ sequence }) => sequence),
    steps,
    {
      logits: live.some(({ options }) => options.logits),
      ...(signal ? { signal } : {}),
    },
  );
  const ended = performance.now();
  live.forEach((one, i) => {
    const drawn = result.tokens[i]!;
    one.decodeMs += (ended - started) * drawn.length / steps;
    one.firstTokenMs ??= ended - one.startedAt;
    one.batch = Math.max(one.batch, live.length);
    if (result.logits && one.options.logits) {
      keepLogits(one, result.logits, {
        first: i,
        width: live.length,
        steps: drawn.length,
        vocab: model.native.config.vocab,
      });
    }
    take(one, drawn);
    if (!isDone(one)) actAgain(model, one);
  });
}

function take(one: Running, drawn: ArrayLike<number>): void {
  const before = one.tokens.length;
  for (const token of Array.from(drawn)) {
    if (one.options.stop?.includes(token)) one.stopToken = token;
    else one.tokens.push(token);
  }
  one.options.onTokens?.(one.tokens.slice(before));
  one.options.inspect?.(one.configuration, one.sequence);
}

/** Copies one sequence's rows out of `[steps, width, vocab]`. */
function keepLogits(
  one: Running,
  logits: Float32Array,
  at: { first: number; width: number; steps: number; vocab: number },
): void {
  for (let step = 0; step < at.steps; step++) {
    const from = (step * at.width + at.first) * at.vocab;
    one.logits.push(logits.slice(from, from + at.vocab));
  }
}

/** The finished answer. */
export function generationOf(one: Running): Generation {
  const { configuration, stopToken, tokens } = one;
  return {
    method: configuration.method.name,
    options: configuration.options,
    granularity: configuration.granularity,
    promptTokens: one.promptTokens,
    tokens,
    stopReason: stopToken === undefined ? "length" : "stop",
    ...(stopToken === undefined ? {} : { stopToken }),
    cache: one.cache,
    timing: {
      prefillMs: one.prefillMs,
      compressMs: one.compressMs,
      firstTokenMs: one.firstTokenMs ?? performance.now() - one.startedAt,
      decodeMs: one.decodeMs,
      // The first token comes from the prompt's logits.
      decodeMsPerToken: one.decodeMs / Math.max(1, tokens.length),
      sharedPrefill: one.sharedPrefill,
      batch: one.batch,
    },
    ...(one.options.logits ? { logits: concatenate(one.logits) } : {}),
  };
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(
    parts.reduce((sum, part) => sum + part.length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
