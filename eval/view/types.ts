/**
 * What a look into the cache consists of: the prompt's tokens, what each configuration kept of them after prefill and
 * during decode, the attention that the end of the prompt gave them, and attention maps.
 *
 * @module
 */

/** A look at one prompt. */
export interface View {
  /** What is looked at, in words. */
  title: string;
  /** The model. */
  model: {
    name: string;
    layers: number;
    queryHeads: number;
    kvHeads: number;
  };
  /** Text of each prompt token; together they are the prompt as the model read it. */
  tokens: string[];
  /** Token ranges `[first, end)` that readers should find at once, for instance the needle. */
  highlights: [first: number, end: number][];
  /** Last prompt queries whose attention the scores are. */
  scoreWindow: number;
  /** Attention that those queries give to each token, mean over queries and group: `[layers, kvHeads, tokens]`, coded. */
  scores: Uint8Array;
  /** One per method and budget. */
  configurations: ViewConfiguration[];
  /** Attention maps of chosen layers. */
  attention: AttentionView | null;
}

/** What one configuration did. */
export interface ViewConfiguration {
  /** Name in tables. */
  name: string;
  /** The method. */
  method: string;
  /** Its options, resolved. */
  options: { [name: string]: unknown };
  /** What one stored head is. */
  granularity: "kv_head" | "query_head";
  /** Heads of the cache. */
  heads: number;
  /** Text of each generated token. */
  generated: string[];
  /** After prefill, then during decode. */
  snapshots: Snapshot[];
}

/** What a cache held at one moment. */
export interface Snapshot {
  /** Tokens generated so far; 0 after prefill. */
  generated: number;
  /** Positions held, a bit each, lowest bit first: `[layers, heads, strideOf(view)]`. */
  kept: Uint8Array;
  /** Bytes of the pages of each head: `[layers, heads]`. */
  bytes: Uint32Array;
  /** Bytes of the whole cache, what belongs to no head included. */
  ownedBytes: number;
}

/** Attention of whole layers, reduced over blocks of tokens. */
export interface AttentionView {
  /** Tokens of a block. */
  block: number;
  /** Blocks of the prompt. */
  blocks: number;
  /** Layers that were mapped. */
  layers: number[];
  /** Mean over a block's queries of the probability of a block's keys: `[layers.length, queryHeads, blocks, blocks]`, coded. */
  maps: Uint8Array;
}

/** Bytes of one head's bits: room for the prompt and the longest answer. */
export function strideOf(
  view: Pick<View, "tokens"> & {
    configurations: readonly Pick<ViewConfiguration, "generated">[];
  },
): number {
  const answer = Math.max(
    0,
    ...view.configurations.map(({ generated }) => generated.length),
  );
  return Math.ceil((view.tokens.length + answer) / 8);
}

const DECADES = 6;

/** Codes a probability in a byte: 0 is 0, the rest are equal steps of the logarithm down to a millionth. */
export function codeProbability(p: number): number {
  if (!(p > 0)) return 0;
  return Math.min(
    255,
    Math.max(1, Math.round(255 + 254 * Math.log10(p) / DECADES)),
  );
}

/** The probability of a code, within 3 percent where it was above a millionth. */
export function decodeProbability(code: number): number {
  return code === 0 ? 0 : 10 ** ((code - 255) * DECADES / 254);
}
