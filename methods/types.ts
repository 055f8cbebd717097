/**
 * The contract between compression methods and the runtime that carries them out. A method is a small policy: it says
 * what prefill must record, turns the records into a selection, and says what happens to each layer. It never touches
 * tensors: everything here is a handle, and the numbers stay in the native library unless `read()` is called.
 *
 * @module
 */

/** Reduction over the query heads of one KV head. */
export type GroupReduce = "mean" | "max" | "sum";

/** What one stored head is: a KV head of the model, or a query head (the layout of older publications). */
export type Granularity = "kv_head" | "query_head";

/** Row scores: `[heads, rows] f32`, row `j` belongs to row `j` of the layer. Freed by `using` or at the layer's end. */
export interface Scores extends Disposable {
  /** Stored heads. */
  readonly heads: number;
  /** Rows scored, counted from row 0 of the layer. */
  readonly rows: number;
  /** Pooling along the rows with an odd width, stride 1; average pooling counts the border as 0. */
  pool(kind: "max" | "avg", width: number): Scores;
  /** `factor * x + offset`. */
  affine(factor: number, offset: number): Scores;
  /** Elementwise sum. */
  add(other: Scores): Scores;
  /** Elementwise product. */
  multiply(other: Scores): Scores;
  /** 1 where these scores are below the others, else 0. */
  less(other: Scores): Scores;
  /** Natural logarithm. */
  log(): Scores;
  /** Each row over the highest of the first `lead` rows and of the `span` rows from itself on, cut to [0, 1]. */
  relative(lead: number, span: number): Scores;
  /** A copy in which the selected rows are `value`. */
  fillSelected(selection: Selection, value: number): Scores;
  /** A copy in which rows `first` to `end - 1` are `value`. */
  fill(first: number, end: number, value: number): Scores;
  /** A copy in which the last `count` rows of each head are `value`. */
  fillLast(count: number, value: number): Scores;
  /** Each head multiplied by the share of its sum that its `count` highest scores make up; -Infinity is left out. */
  concentrate(count: number): Scores;
  /** The highest `count` rows of each head (or `counts[h]` of head `h`); the lower row among equals. */
  topK(count: number | ArrayLike<number>): Selection;
  /** How many of the `total` highest scores of all heads together fall to each head. */
  share(total: number): Uint32Array;
  /** Copies the values out: `[heads, rows]`. */
  read(): Float32Array;
}

/** Chosen rows per stored head, ascending and distinct. */
export interface Selection extends Disposable {
  /** Heads; a selection of one head counts for every head. */
  readonly heads: number;
  /** Copies the rows out, one list per head. */
  read(): Uint32Array[];
}

/** A set of prompt queries. */
export type QuerySet =
  | "all"
  /** The last `suffix` queries. */
  | { suffix: number }
  /** The first `prefix` queries. */
  | { prefix: number }
  /** Both: the first `prefix` and the last `suffix` queries. */
  | { prefix: number; suffix: number }
  /** Half-open ranges of query positions. */
  | { ranges: [first: number, end: number][] };

/** What prefill must record for a policy; the union over all policies is recorded once. */
export interface Observation {
  /** Queries of the last `windowQueries` prompt tokens. */
  windowQueries?: number;
  /** Column masses: the attention probability that a set of queries gives to each row. */
  columnMasses?: QuerySet[];
}

/** How the keys or the values of packed rows are stored. */
export interface PackedPart {
  /** Bits of a code: 2, 3, 4 or 8. */
  bits: number;
  /** Whose elements share a scale: the rows of a page in one channel, or a group of channels of one token. */
  axis: "channel" | "token";
  /** Channels of a group with axis `token`, a multiple of 16; all when missing. */
  group?: number;
  /** Evenly spaced levels (default), or levels fitted to what is packed first, with at most 4 bits. */
  levels?: "even" | "fitted";
  /** Share of the elements that are stored as they are: those farthest from the middle of their group. Default 0. */
  outliers?: number;
  /** Rank of a correction of what the codes lose, fitted to what is packed first. Default 0. */
  rank?: number;
}

/** How rows are packed, a page at a time. */
export interface PackFormat {
  /** Newest rows that stay plain at least. Default 0. */
  residual?: number;
  /** Pack what is there now; rows that come later stay plain. Default: decode goes on packing. */
  once?: boolean;
  /** Keys; missing: as they are. `unrotated`: as they were before rotation, which happens when they are read. */
  keys?: PackedPart & { unrotated?: boolean };
  /** Values; missing: as they are. */
  values?: PackedPart;
}

/** Facts about a model's attention that policies may depend on. */
export interface ModelShape {
  /** Decoder layers. */
  layers: number;
  /** Query heads. */
  queryHeads: number;
  /** KV heads. */
  kvHeads: number;
  /** Elements of one head. */
  headDim: number;
}

/** Which part of the rows a query head attends to in prefill. */
export type Sparsity =
  /** All rows. */
  | { kind: "all" }
  /** The `columns` rows and the `distances` distances that the last queries weigh most; at least 30 and 50. */
  | { kind: "lines"; columns: number; distances: number }
  /** The first rows and the most recent ones, the token's own included. */
  | { kind: "ends"; first: number; recent: number }
  /** For every 64 queries the `blocks` blocks of 64 rows that fit them best. */
  | { kind: "blocks"; blocks: number };

/** How two layers share the directions of their rows. */
export interface DirectionSharing {
  /** Where the shared direction lies, from the lower layer's (0) to the upper's (1). */
  interpolation: number;
  /** Rows of each head that stay as they are: those whose directions differ most, for keys and values apart. Default 0. */
  exact?: number;
  /**
   * Instead of `exact`: rows whose angle is less than this share of the range of the head's angles below the greatest one,
   * from 0 to 1.
   */
  within?: number;
}

/** One layer of one sequence, after its rows are complete. */
export interface LayerContext extends ModelShape {
  /** Index of this layer, from 0. */
  readonly layer: number;
  /** Rows in each stored head right now (the longest, where they differ). */
  readonly length: number;
  /** Rows in each stored head right now. */
  rowCounts(): ArrayLike<number>;
  /** Heads of the cache: `kvHeads` or `queryHeads`, by granularity. */
  readonly storedHeads: number;
  /** Query heads per KV head. */
  readonly groupSize: number;
  /** What a stored head is. */
  readonly granularity: Granularity;
  /**
   * Attention probability of the last `window` queries on each row: `[storedHeads, length - window]`, or all rows with
   * `allRows`. Summed (default) or averaged over the queries, or with `hits` the number of queries that give a row at least
   * the average probability; the group's query heads are reduced after that, or
   * before with `reduceFirst`. Needs `observe.windowQueries >= window`.
   */
  observationScores(options: {
    window: number;
    groupReduce: GroupReduce;
    over?: "sum" | "mean" | "hits";
    allRows?: boolean;
    reduceFirst?: boolean;
  }): Scores;
  /** A column mass that `observe.columnMasses` asked for, by its query set: `[storedHeads, length]`. */
  columnMass(queries: QuerySet, groupReduce: GroupReduce): Scores;
  /** Euclidean norm of each row's key: `[storedHeads, length]`. */
  keyNorm(): Scores;
  /** Euclidean norm of each row's value: `[storedHeads, length]`. */
  valueNorm(): Scores;
  /**
   * What each key channel carries, `[storedHeads, headDim]`: the mean square of the last `window` queries in it,
   * reduced over the group, times the mean square of the keys. Needs `observe.windowQueries >= window`.
   */
  channelScores(options: {
    window: number;
    groupReduce: GroupReduce;
  }): Scores;
  /** Uniform draws in (0, 1] keyed by seed, layer, head and row: `[storedHeads, rows]`; `rows` is `length` if missing. */
  uniform(seed: number, rows?: number): Scores;
  /** Scores from numbers of the policy's own: `[heads, rows]`. */
  fromArray(values: Float32Array, heads: number): Scores;
  /** A selection from explicit lists, one per stored head or one for all. */
  select(rows: ArrayLike<number>[]): Selection;
  /**
   * Keeps the selected rows, the first `first` and the last `last` rows of each head, and frees the rest. Without a
   * selection only the two ranges stay. With `merge` each row that goes is first merged into the kept row whose key is
   * most like its own: by their midpoint, or weighted by similarity.
   */
  retain(
    selection: Selection | null,
    options?: {
      first?: number;
      last?: number;
      merge?: "midpoint" | "similarity";
    },
  ): void;
  /**
   * Makes the attention of this layer's prefill go over a part of the rows; only in `beforeAttention`, and with no column
   * masses recorded. Nothing happens for recorded tensors, which have no attention.
   * @param heads one pattern per query head
   */
  attendSparsely(heads: readonly Sparsity[]): void;
  /**
   * For each row from `first` on, in order, adds `share / span` of its value to the values of each of the next `span`
   * rows; rows nearer to the end than that give nothing.
   * @param shares `[storedHeads, length]`
   */
  spreadValues(shares: Scores, options: { first: number; span: number }): void;
  /**
   * Shares the directions of rows with the layer before: the direction between the two keys of a row is kept once, and each
   * layer keeps the length of its own; the same for values. Afterwards neither layer can be scored, evicted or packed.
   */
  shareDirections(options: DirectionSharing): void;
  /**
   * Packs the layer's rows but for the newest `residual`; the format stays with the layer, so that decode packs the rows
   * that come later, unless `once`.
   * @param chosen `rows`: pack these instead, the others stay plain (needs `once`); `channels`: key channels to store,
   * as many in every head (needs `once`)
   */
  pack(
    format: PackFormat,
    chosen?: { rows?: Selection; channels?: Selection },
  ): void;
}

/** A running statistic of every row, inside a step program. Opaque: it names what the library keeps. */
export interface Statistic {
  /** Its name, for messages. */
  readonly statistic: string;
}

/** How rows are evicted in a step. */
export interface EvictOptions {
  /** Rows left, per head or for all; the rows that `whenRowsExceed` allows when missing. */
  keep?: number | ArrayLike<number>;
  /** Tokens at positions below it are never evicted. */
  first?: number;
  /** The last so many tokens are never evicted. */
  last?: number;
  /**
   * Which rows stay is drawn without replacement, with weights `softmax(statistic / temperature)`; with a temperature
   * of 0 or less all weights are equal. Draws depend on the seed, the layer, the head, the row's position and the tokens
   * seen, on nothing else.
   */
  draw?: { temperature: number; seed: number };
}

/** How attention chooses pages in a step. */
export interface PageOptions {
  /** Consecutive rows of one page. */
  pageRows: number;
  /** Rows attended to: the best `ceil(budget / pageRows)` pages. */
  budget: number;
  /** Newest rows that are always attended to, out of the budget. Default 0. */
  recent?: number;
  /** Reduction of page scores over the query heads of one stored head. Default mean. */
  groupReduce?: GroupReduce;
  /** Exactly `budget` rows: of the chosen pages' rows the first ones, from one page more where the last is incomplete. */
  exact?: boolean;
}

/**
 * Records what happens to one layer in every decode step. Nothing is carried out while it records: the operations become
 * a short list, which the native library runs inside each step, so control flow in TypeScript costs nothing per token.
 *
 * @example A whole method's decode: evict the row that the last token attended to least (TOVA)
 * ```ts
 * import type { Policy } from "./types.ts";
 *
 * const policy: Policy = {
 *   decode(step) {
 *     const last = step.mass({ decay: 0, groupReduce: "mean" });
 *     step.whenRowsExceed(512, () => step.evict(last, { last: 1 }));
 *   },
 * };
 * ```
 */
export interface DecodeRecorder extends ModelShape {
  /** Index of this layer, from 0. */
  readonly layer: number;
  /** Heads of the cache. */
  readonly storedHeads: number;
  /** Query heads per KV head. */
  readonly groupSize: number;
  /** Rows that each stored head holds when decode begins. */
  readonly rows: readonly number[];
  /**
   * Attention mass: at every step it is multiplied by `decay` (default 1), then the probability that the new token's query
   * gives to the row is added. Starts from a column mass that prefill recorded, or from 0.
   */
  mass(
    options?: { from?: QuerySet; decay?: number; groupReduce?: GroupReduce },
  ): Statistic;
  /** Attention mass of the last `window` tokens' queries on the rows that are there, computed when it is asked for. */
  recentMass(
    options: { window: number; groupReduce?: GroupReduce },
  ): Statistic;
  /** How many of the last `window` tokens' queries give the row at least the average probability. */
  recentHits(
    options: { window: number; groupReduce?: GroupReduce },
  ): Statistic;
  /** Position of the row's token: the oldest is lowest. */
  position(): Statistic;
  /** What `body` records acts only in steps after which the number of tokens seen is a multiple of `tokens`. */
  every(tokens: number, body: () => void): void;
  /** What `body` records acts only on heads that hold more rows, the new token's included. */
  whenRowsExceed(budget: number | ArrayLike<number>, body: () => void): void;
  /** Evicts the rows with the lowest statistic, inside {@linkcode DecodeRecorder.whenRowsExceed}; among equals the newer. */
  evict(statistic: Statistic, options?: EvictOptions): void;
  /** Attention reads only the pages whose keys may match the query best; nothing is evicted. Goes with nothing else. */
  attendByPages(options: PageOptions): void;
  /**
   * Tokens at positions below `first` are attended to as if the evicted rows between them and the others had never been:
   * distances count kept rows.
   */
  countKeptRows(first: number): void;
}

/** A method with its options resolved, for one sequence. */
export interface Policy {
  /** What prefill must record. */
  observe?: Observation;
  /**
   * Acts once per layer, when the layer's rows are there and before its attention runs: what it changes, this prefill's
   * attention sees. A policy with this hook gets a prefill of its own, unless {@linkcode prefillKey} says otherwise.
   */
  beforeAttention?(layer: LayerContext): void;
  /**
   * Policies whose `beforeAttention` does the very same have the same key; they share one prefill, and act on forks of
   * it afterwards. Only for hooks that leave all rows in place.
   */
  prefillKey?: string;
  /** Acts once per layer, when the layer's prompt rows are complete. A missing hook keeps everything. */
  afterPrefill?(layer: LayerContext): void;
  /** Whether `afterPrefill` packs rows or gives channels up: they then take fewer bytes than `maxRows` tells. */
  packs?: boolean;
  /** First and last prompt rows that survive in every layer; `kvf check-method` and the tests hold it to that. */
  keeps?: { first?: number; last?: number };
  /** Records what happens in every decode step; called once per sequence and layer, after `afterPrefill`. */
  decode?(step: DecodeRecorder): void;
  /** Acts again during generation. What `observe` asks for goes on: masses grow, the window follows the last tokens. */
  again?: {
    /** New tokens between two actions. */
    every: number;
    /** Acts on one layer. Heads may hold different numbers of rows; scores then concern each head's own. */
    act(layer: LayerContext): void;
  };
  /**
   * Most rows that all stored heads of one layer may hold together after prefill of `length` tokens; the runtime
   * checks it for every example, and reads no prompt whose rows it has no memory for. Missing: `storedHeads * length`.
   */
  maxRows?(
    facts: ModelShape & { layer: number; length: number; storedHeads: number },
  ): number;
}

/** A zod schema, as far as the contract needs it. */
export interface OptionSchema<T> {
  /** Returns the value with defaults filled in, or throws. */
  parse(value: unknown): T;
  /** The same without throwing. */
  safeParse(value: unknown):
    | { success: true; data: T }
    | {
      success: false;
      error: { issues: { code: string; message: string }[] };
    };
}

/** One option of a method, as declared by the helpers of `define.ts`. */
export interface OptionSpec<T> {
  /** The zod schema: type, bounds and default. */
  schema: OptionSchema<T>;
  /** One sentence for help texts; names the unit. */
  description: string;
  /** Where the default comes from: paper and section, or the authors' code. */
  source?: string;
}

/** A compression method. */
export interface Method<Options = Record<string, unknown>> {
  /** Name on the command line and in records: the paper's, in lower case. */
  name: string;
  /** Name in prose. */
  title: string;
  /** One line for tables. */
  summary: string;
  /** Address of the paper, if there is one. */
  paper?: string;
  /** What the method does to rows. */
  kind:
    | "none"
    | "evict"
    | "merge"
    | "quantise"
    | "prune"
    | "retrieve"
    | "sparse";
  /** When it acts. */
  acts: string;
  /** Layouts in which the method is defined. */
  granularities: readonly Granularity[];
  /** True when the method changes what prefill computes, so that a prefill cannot be shared with others. */
  altersPrefill?: boolean;
  /** Differences from the paper or the authors' code; "nothing known" when that is so. */
  differs: string;
  /** One spec per option; an option that is not here is refused. */
  options: { [K in keyof Options]: OptionSpec<Options[K]> };
  /** Options, beside the budget, with which it can be tried on a model of that shape; only where defaults do not do. */
  exampleOptions?(shape: ModelShape): Record<string, unknown>;
  /** Makes a policy. Throws `RangeError` when options contradict each other or the shape. */
  create(options: Options, shape: ModelShape): Policy;
}
