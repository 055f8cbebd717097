/**
 * Runs configurations on one prompt and notes what they keep.
 *
 * @module
 */
import { type Configuration, generate, labelOf } from "../engine/mod.ts";
import type { LanguageModel } from "../engine/mod.ts";
import type { Sequence } from "../../ffi/mod.ts";
import {
  type AttentionView,
  codeProbability,
  type Snapshot,
  type View,
} from "./types.ts";

/** What to look at. */
export interface CaptureOptions {
  /** What is looked at, in words. */
  title: string;
  /** Name of the model, for people. */
  modelName: string;
  /** Texts to find in the prompt and to mark. */
  highlights?: readonly string[];
  /** New tokens at most. Default: 16. */
  maxNewTokens?: number;
  /** Look into the caches after so many new tokens each. Default: 1. */
  every?: number;
  /** Token ids that end the generation. */
  stop?: readonly number[];
  /** Last queries whose attention is the tokens' score. Default: 32. */
  scoreWindow?: number;
  /** Layers whose attention is mapped. Default: none. */
  attentionLayers?: readonly number[];
  /** Blocks of an attention map at most. Default: 128. */
  blocks?: number;
}

/**
 * Looks at a prompt: reads it once with all attention recorded, then answers it with every configuration and notes the
 * positions that each cache holds. With attention maps, the queries of the whole prompt are held in memory meanwhile:
 * layers x query heads x tokens x head dimension x 4 bytes.
 *
 * @param model The model; it must have a tokenizer.
 * @param prompt Token ids.
 * @param configurations Methods with options.
 * @param options What to look at.
 * @throws RangeError when a text to mark is not in the prompt, or a layer not in the model
 */
export async function captureView(
  model: LanguageModel,
  prompt: readonly number[],
  configurations: readonly Configuration[],
  options: CaptureOptions,
): Promise<View> {
  const tokens = textsOf(model, prompt);
  const highlights = (options.highlights ?? []).map((text) =>
    findTokens(tokens, text)
  );
  const { layers, queryHeads, kvHeads } = model.shape;
  const seen = await observe(model, prompt, options);
  const room = prompt.length + (options.maxNewTokens ?? 16);
  const notes = new Map<Configuration, Snapshot[]>(
    configurations.map((one) => [one, []]),
  );
  const generations = await generate(model, prompt, configurations, {
    maxNewTokens: options.maxNewTokens ?? 16,
    chunk: options.every ?? 1,
    ...(options.stop ? { stop: options.stop } : {}),
    inspect: (configuration, sequence) => {
      notes.get(configuration)!.push(snapshotOf(model, sequence, room));
    },
  });
  const longest = Math.max(...generations.map(({ tokens }) => tokens.length));
  const stride = Math.ceil((prompt.length + longest) / 8);
  return {
    title: options.title,
    model: { name: options.modelName, layers, queryHeads, kvHeads },
    tokens,
    highlights,
    ...seen,
    configurations: configurations.map((one, i) => {
      const { tokens, granularity } = generations[i]!;
      return {
        name: labelOf(one),
        method: one.method.name,
        options: one.options,
        granularity,
        heads: granularity === "query_head" ? queryHeads : kvHeads,
        generated: textsOf(model, tokens),
        snapshots: distinct(notes.get(one)!).map((note) => ({
          ...note,
          kept: cut(note.kept, Math.ceil(room / 8), stride),
        })),
      };
    }),
  };
}

/** Text of each token; a token that ends in half a character gives its text to the next. */
function textsOf(model: LanguageModel, ids: readonly number[]): string[] {
  const { tokenizer } = model.folder;
  if (!tokenizer) {
    throw new RangeError(
      "Cannot look at a prompt as the model must have a tokenizer: tokenizer.json is missing",
    );
  }
  const stream = tokenizer.stream({ skipSpecialTokens: false });
  const texts = ids.map((id) => stream.push(id));
  const rest = stream.flush();
  if (texts.length > 0) texts[texts.length - 1] += rest;
  return texts;
}

/** Tokens that a text of the prompt touches. */
function findTokens(tokens: readonly string[], text: string): [number, number] {
  const from = tokens.join("").indexOf(text);
  if (text === "" || from < 0) {
    throw new RangeError(
      `Cannot mark a text as the prompt must hold it: "${text}"`,
    );
  }
  let at = 0;
  let first = -1;
  for (const [i, token] of tokens.entries()) {
    const end = at + token.length;
    if (first < 0 && end > from) first = i;
    if (end >= from + text.length) return [first, i + 1];
    at = end;
  }
  return [first, tokens.length];
}

/** Attention of the prompt before anything is thrown away. */
async function observe(
  model: LanguageModel,
  prompt: readonly number[],
  options: CaptureOptions,
): Promise<Pick<View, "scoreWindow" | "scores" | "attention">> {
  const { layers, queryHeads, kvHeads } = model.shape;
  const n = prompt.length;
  const chosen = [...new Set(options.attentionLayers ?? [])]
    .sort((a, b) => a - b);
  const wrong = chosen.find((layer) => !(layer >= 0 && layer < layers));
  if (wrong !== undefined) {
    throw new RangeError(
      `Cannot map attention as layers must be below ${layers}: ${wrong}`,
    );
  }
  const scoreWindow = Math.min(n, options.scoreWindow ?? 32);
  const block = Math.ceil(n / (options.blocks ?? 128));
  const blocks = Math.ceil(n / block);
  const scores = new Uint8Array(layers * kvHeads * n);
  const size = queryHeads * blocks * blocks;
  const maps = new Uint8Array(chosen.length * size);
  using sequence = model.cache.sequence("kv_head");
  const prefill = sequence.prefill(model.native, prompt, {
    windowQueries: chosen.length > 0 ? n : scoreWindow,
  });
  for (let layer = 0; layer < layers; layer++) {
    await prefill.layers(layer, 1);
    {
      using scope = sequence.layer(layer);
      const values = scope.observationScores({
        window: scoreWindow,
        groupReduce: "mean",
        over: "mean",
        allRows: true,
      }).read();
      scores.set(values.map(codeProbability), layer * kvHeads * n);
    }
    const place = chosen.indexOf(layer);
    if (place < 0) continue;
    const map = sequence.attentionMap(layer, block);
    maps.set(map.map(codeProbability), place * size);
  }
  const attention: AttentionView | null = chosen.length === 0
    ? null
    : { block, blocks, layers: chosen, maps };
  return { scoreWindow, scores, attention };
}

/** Positions and bytes of a cache, with room for `room` positions. */
function snapshotOf(
  model: LanguageModel,
  sequence: Sequence,
  room: number,
): Snapshot {
  const { layers } = model.shape;
  const { storedHeads } = sequence;
  const stride = Math.ceil(room / 8);
  const kept = new Uint8Array(layers * storedHeads * stride);
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < storedHeads; head++) {
      const place = layer * storedHeads + head;
      const positions = sequence.positions(layer, head);
      for (const position of positions) {
        const at = place * stride + (position >> 3);
        kept[at] = kept[at]! | 1 << (position & 7);
      }
    }
  }
  const { generated, ownedBytes } = sequence.describe();
  const bytes = Uint32Array.from(sequence.bytes().flat());
  return { generated, kept, bytes, ownedBytes };
}

/** One snapshot for each number of generated tokens: the last. */
function distinct(snapshots: readonly Snapshot[]): Snapshot[] {
  return snapshots.filter((one, i) =>
    snapshots[i + 1]?.generated !== one.generated
  );
}

/** Rows of `from` bytes, cut to `to` bytes. */
function cut(bits: Uint8Array, from: number, to: number): Uint8Array {
  const rows = bits.length / from;
  const out = new Uint8Array(rows * to);
  for (let row = 0; row < rows; row++) {
    out.set(bits.subarray(row * from, row * from + to), row * to);
  }
  return out;
}
