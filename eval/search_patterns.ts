/**
 * The offline search for sparse patterns: which part of its attention each head of a model needs, measured on prompts.
 *
 * @module
 */
import type { Sparsity } from "../methods/types.ts";
import { type PatternName, sparsityOf } from "../methods/parts/pattern_file.ts";
import type { LanguageModel } from "./engine/mod.ts";

/** A pattern that heads are tried with: MInference's name and sizes. */
export type Candidate = readonly [
  name: PatternName,
  first: number,
  second: number,
];

/** What a head got. */
export interface FoundPattern {
  /** The pattern. */
  candidate: Candidate;
  /** Share of the attention probability that it keeps, mean over the prompts' queries. */
  kept: number;
  /** Share of the query-row pairs that it computes. */
  pairs: number;
}

/** Options of {@linkcode searchPatterns}. */
export interface SearchOptions {
  /** Share of the attention probability that a head should keep; default 0.95. */
  recall?: number;
  /** What to try; default: {@linkcode standardCandidates} of the longest prompt. */
  candidates?: readonly Candidate[];
  /** Called after each layer. */
  onLayer?: (layer: number) => void;
  /** Cancels between layers. */
  signal?: AbortSignal;
}

/** Patterns of several sizes for prompts of that many tokens. */
export function standardCandidates(tokens: number): Candidate[] {
  const share = (parts: number) => Math.max(1, Math.ceil(tokens / parts));
  return [16, 8, 4, 2].flatMap((parts): Candidate[] => [
    ["stream_llm", Math.min(128, share(16)), share(parts)],
    ["vertical_and_slash", share(4 * parts), share(4 * parts)],
    ["vertical_and_slash", share(parts), share(8 * parts)],
    ["vertical_and_slash", share(8 * parts), share(parts)],
    ["block_sparse", share(64 * parts), 0],
  ]);
}

/**
 * Finds a pattern for each head: the one with the fewest query-row pairs among those that keep enough of the attention
 * probability, or the one that keeps most where none does.
 *
 * @param model the model
 * @param prompts token ids; best as long as the prompts to come
 * @returns `[layers][queryHeads]`
 */
export async function searchPatterns(
  model: LanguageModel,
  prompts: readonly (readonly number[])[],
  options: SearchOptions = {},
): Promise<FoundPattern[][]> {
  if (prompts.length === 0) {
    throw new RangeError(
      "Cannot search patterns as there must be a prompt: there are 0",
    );
  }
  const { recall = 0.95 } = options;
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  const candidates = options.candidates ?? standardCandidates(longest);
  const { layers, queryHeads } = model.shape;
  const sums = Array.from(
    { length: layers },
    () =>
      candidates.map(() =>
        Array.from({ length: queryHeads }, () => ({ kept: 0, pairs: 0 }))
      ),
  );
  const signal = options.signal ? { signal: options.signal } : {};
  for (const prompt of prompts) {
    using sequence = model.cache.sequence("kv_head");
    const prefill = sequence.prefill(model.native, prompt);
    for (let layer = 0; layer < layers; layer++) {
      await prefill.layers(layer, 1, { ...signal, phase: "project" });
      const measured = prefill.recall(
        candidates.map((candidate) =>
          Array<Sparsity>(queryHeads).fill(sparsityOf(...candidate))
        ),
      );
      measured.forEach((heads, c) =>
        heads.forEach(({ kept, pairs }, head) => {
          const sum = sums[layer]![c]![head]!;
          sum.kept += kept / prompts.length;
          sum.pairs += pairs / prompts.length;
        })
      );
      await prefill.layers(layer, 1, { ...signal, phase: "attend" });
      options.onLayer?.(layer);
    }
    prefill.end();
  }
  return sums.map((layer) =>
    Array.from({ length: queryHeads }, (_, head) => {
      const found = candidates.map((candidate, c) => ({
        candidate,
        ...layer[c]![head]!,
      }));
      const enough = found.filter(({ kept }) => kept >= recall);
      return enough.length > 0
        ? enough.reduce((a, b) => b.pairs < a.pairs ? b : a)
        : found.reduce((a, b) => b.kept > a.kept ? b : a);
    })
  );
}

/** The patterns as a file: a list with one object per layer, in MInference's form. */
export function patternFile(
  found: readonly (readonly FoundPattern[])[],
): string {
  const rounded = (x: number) => Number(x.toFixed(4));
  return `[\n${
    found.map((heads) =>
      JSON.stringify(Object.fromEntries(
        heads.map(({ candidate, kept }, head) => [
          head,
          [...candidate, rounded(kept)],
        ]),
      ))
    ).join(",\n")
  }\n]\n`;
}
