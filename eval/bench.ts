/**
 * What a configuration costs: time to the first token, decode speed, bytes, and how much of the device's read bandwidth
 * a decode step uses. Medians over repeats with their spread.
 *
 * @module
 */
import { generate, type Generation } from "./engine/mod.ts";
import type { Configuration, LanguageModel } from "./engine/mod.ts";

/** A measured quantity over the repeats. */
export interface Spread {
  /** The middle value. */
  median: number;
  /** The lowest. */
  low: number;
  /** The highest. */
  high: number;
}

/** What to measure. */
export interface BenchOptions {
  /** Prompt lengths, tokens. */
  lengths: readonly number[];
  /** Sequences of a prompt that decode together. */
  batch: number;
  /** New tokens, at least 2. */
  newTokens: number;
  /** Measured repetitions; one more warms up. */
  repeats: number;
  /** Bytes per second that the device reads, measured in the same run. */
  readBandwidth: number;
  /** Called before each repetition. */
  onProgress?: (done: number, total: number) => void;
}

/** One configuration at one length. */
export interface BenchRow {
  /** The configuration. */
  configuration: Configuration;
  /** Tokens of the prompt. */
  promptTokens: number;
  /** Sequences that decoded together. */
  batch: number;
  /** From the start of the prompt to the first token, milliseconds. */
  firstTokenMs: Spread;
  /** Reading the prompt, without the policy's work, milliseconds. */
  prefillMs: Spread;
  /** The policy's work, milliseconds. */
  compressMs: Spread;
  /** One step of the batch, milliseconds. */
  decodeMsPerStep: Spread;
  /** Prompt tokens per second, the policy's work included. */
  prefillTokensPerSecond: number;
  /** New tokens per second of the batch. */
  decodeTokensPerSecond: number;
  /** Answers of so many tokens per second, each with a prefill of its own. */
  samplesPerSecond: number;
  /** Bytes that a step reads over its time, as a share of memory's read bandwidth; above 1 where caches hold them. */
  bandwidthShare: number;
  /** Bytes of one cache after prefill, as rows and formats need. */
  promisedBytes: number;
  /** Bytes of one cache after prefill, as its tables hold. */
  residentBytes: number;
  /** Highest bytes of the pool. */
  peakBytes: number;
}

/**
 * Measures configurations. Repetitions go round all configurations, so that a machine that slows down slows all of them.
 *
 * @param model the model
 * @param configurations at least one
 * @param options lengths, batch, repetitions
 * @returns one row per length and configuration, in that order
 */
export async function benchConfigurations(
  model: LanguageModel,
  configurations: readonly Configuration[],
  options: BenchOptions,
): Promise<BenchRow[]> {
  const { lengths, repeats, batch, newTokens } = options;
  const cases = lengths.flatMap((length) =>
    configurations.map((configuration) => ({
      configuration,
      prompt: timingPrompt(length, model.native.config.vocab),
      runs: [] as Generation[],
    }))
  );
  const total = cases.length * (repeats + 1);
  for (let repeat = 0; repeat <= repeats; repeat++) {
    for (const [i, { configuration, prompt, runs }] of cases.entries()) {
      options.onProgress?.(repeat * cases.length + i, total);
      const [first] = await generate(
        model,
        prompt,
        Array<Configuration>(batch).fill(configuration),
        { maxNewTokens: newTokens, chunk: newTokens },
      );
      if (repeat > 0) runs.push(first!);
    }
  }
  return cases.map(({ configuration, prompt, runs }) =>
    rowOf(model, configuration, prompt.length, runs, options)
  );
}

/** Any text does for timing; a fixed pattern keeps the run reproducible. */
function timingPrompt(length: number, vocab: number): number[] {
  return Array.from({ length }, (_, i) => (i * 7919 + 13) % vocab);
}

function rowOf(
  model: LanguageModel,
  configuration: Configuration,
  promptTokens: number,
  runs: readonly Generation[],
  { batch, newTokens, readBandwidth }: BenchOptions,
): BenchRow {
  const over = (value: (run: Generation) => number): Spread =>
    spread(runs.map(value));
  // The first token comes from the prompt's logits; every other one takes a step.
  const step = over(({ timing }) => timing.decodeMs / (newTokens - 1));
  const prompt = over(({ timing }) => timing.prefillMs + timing.compressMs);
  const { cache } = runs[0]!;
  const read = model.native.stepBytes + batch * cache.residentBytes;
  return {
    configuration,
    promptTokens,
    batch,
    firstTokenMs: over(({ timing }) => timing.firstTokenMs),
    prefillMs: over(({ timing }) => timing.prefillMs),
    compressMs: over(({ timing }) => timing.compressMs),
    decodeMsPerStep: step,
    prefillTokensPerSecond: 1e3 * promptTokens / prompt.median,
    decodeTokensPerSecond: 1e3 * batch / step.median,
    samplesPerSecond: 1e3 * batch /
      (batch * prompt.median + (newTokens - 1) * step.median),
    bandwidthShare: read / (step.median / 1e3) / readBandwidth,
    promisedBytes: cache.promisedBytes,
    residentBytes: cache.residentBytes,
    peakBytes: Math.max(...runs.map(({ cache }) => cache.peakBytes)),
  };
}

/** Median and range. */
export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  const median = sorted.length % 2 === 1
    ? sorted[half]!
    : (sorted[half - 1]! + sorted[half]!) / 2;
  return { median, low: sorted[0]!, high: sorted.at(-1)! };
}
