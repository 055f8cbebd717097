/**
 * One layer of a sequence as policies see it: the primitives of `methods/types.ts` over the native library. Every score
 * and selection made through a layer is freed with it at the latest.
 *
 * @module
 */
import type {
  DirectionSharing,
  Granularity,
  GroupReduce,
  LayerContext,
  PackFormat,
  Policy,
  QuerySet,
  Scores,
  Selection,
  Sparsity,
} from "../methods/types.ts";
import {
  checkChoice,
  checkInteger,
  checkIntegers,
  checkLength,
} from "./_check.ts";
import type { Library, StatusName } from "./_library.ts";
import { Native } from "./_native.ts";
import {
  callSequence,
  readRowCounts,
  type SequenceArguments,
  type SequenceCall,
  type SequenceState,
} from "./_state.ts";
import { REDUCES, WINDOW_FLAGS } from "./_structs.ts";
import type { CachePointer } from "./_symbols.ts";
import { encodeFormat } from "./format.ts";
import { querySetKey } from "./observe.ts";
import { encodeSparsity } from "./sparsity.ts";

/** The arguments of a function of a cache, without the cache and the error buffer. */
type Arguments<N extends StatusName> = Parameters<
  Library["functions"][N]
> extends readonly [CachePointer | null, ...infer A, infer _Error, number] ? A
  : never;

/** Functions whose first parameter is a cache. */
type CacheCall = {
  [N in StatusName]: Arguments<N> extends never ? never : N;
}[StatusName];

const KIND_POOL = { max: 0, avg: 1 } as const;
const MERGES = ["midpoint", "similarity"] as const;

/** The objects of one layer scope: what they are freed by, and whether they still live. */
class Scope {
  readonly state: SequenceState;
  #ids = new Set<number>();
  #closed = false;
  /** Keeps the cache alive from the first object to the last. */
  #native: Native<CachePointer> | undefined;

  constructor(state: SequenceState) {
    this.state = state;
  }

  /** Calls a function of the cache; returns its status or id. */
  call<N extends CacheCall>(name: N, ...args: Arguments<N>): number {
    this.check();
    const { cache } = this.state;
    const call = cache.library.status.bind(cache.library) as (
      name: N,
      ...args: unknown[]
    ) => number;
    return call(name, cache.pointer, ...args);
  }

  /** Throws `TypeError` after the end of the scope. */
  check(): void {
    if (this.#closed) {
      throw new TypeError(
        `Cannot use LayerContext as it has been disposed`,
      );
    }
  }

  has(id: number): boolean {
    return this.#ids.has(id);
  }

  /** Takes an object over and reads its shape. */
  adopt(id: number): { heads: number; rows: number } {
    this.#ids.add(id);
    const { cache } = this.state;
    this.#native ??= new Native(
      "LayerContext",
      cache.library,
      cache.pointer,
      () => {},
      [cache],
    );
    const shape = new Uint32Array(3);
    this.call("kvf_object_shape", id, shape);
    return { heads: shape[1] ?? 0, rows: shape[2] ?? 0 };
  }

  /** Frees an object, at the latest when the cache has no call on another thread. */
  free(id: number): void {
    if (!this.#ids.delete(id)) return;
    const pointer = this.#native?.pointer;
    if (pointer === undefined) return;
    const { cache } = this.state;
    cache.whenIdle(() => {
      cache.library.status("kvf_object_free", pointer, id);
    });
  }

  dispose(): void {
    if (this.#closed) return;
    for (const id of [...this.#ids]) this.free(id);
    this.#closed = true;
    this.#native?.dispose();
  }
}

/** An object of a scope. */
abstract class ScopedObject implements Disposable {
  readonly heads: number;
  protected readonly scope: Scope;
  protected readonly size: number;
  #id: number;

  constructor(scope: Scope, id: number) {
    this.scope = scope;
    this.#id = id;
    const { heads, rows } = scope.adopt(id);
    this.heads = heads;
    this.size = rows;
  }

  /** The id. Throws `TypeError` after dispose, and after the end of the layer's scope. */
  get id(): number {
    if (!this.scope.has(this.#id)) {
      throw new TypeError(
        `Cannot use ${this.constructor.name} as it has been disposed`,
      );
    }
    return this.#id;
  }

  /** The id, for use together with an object of `scope`. */
  idIn(scope: Scope): number {
    if (this.scope.state.cache !== scope.state.cache) {
      throw new TypeError(
        `Cannot use ${this.constructor.name} as it belongs to another cache`,
      );
    }
    return this.id;
  }

  [Symbol.dispose](): void {
    this.scope.free(this.#id);
  }
}

class NativeScores extends ScopedObject implements Scores {
  get rows(): number {
    return this.size;
  }

  pool(kind: "max" | "avg", width: number): Scores {
    checkChoice("pool scores", "kind", kind, ["max", "avg"]);
    checkInteger("pool scores", "width", width, 1);
    if (width % 2 === 0) {
      throw new RangeError(
        `Cannot pool scores as width must be odd: width is ${width}`,
      );
    }
    return this.#make("kvf_scores_pool", this.id, KIND_POOL[kind], width);
  }

  affine(factor: number, offset: number): Scores {
    return this.#make("kvf_scores_affine", this.id, factor, offset);
  }

  add(other: Scores): Scores {
    return this.#make("kvf_scores_combine", this.id, this.#other(other), 0);
  }

  multiply(other: Scores): Scores {
    return this.#make("kvf_scores_combine", this.id, this.#other(other), 1);
  }

  less(other: Scores): Scores {
    return this.#make("kvf_scores_combine", this.id, this.#other(other), 2);
  }

  log(): Scores {
    return this.#make("kvf_scores_log", this.id);
  }

  relative(lead: number, span: number): Scores {
    checkInteger("relate scores", "lead", lead, 0, this.rows);
    checkInteger("relate scores", "span", span, 1);
    return this.#make("kvf_scores_relative", this.id, lead, span);
  }

  fillSelected(selection: Selection, value: number): Scores {
    const id = selectionId("fill scores", selection, this.scope);
    return this.#make("kvf_scores_fill_selected", this.id, id, value);
  }

  fill(first: number, end: number, value: number): Scores {
    checkInteger("fill scores", "end", end, 0, this.rows);
    checkInteger("fill scores", "first", first, 0, end);
    return this.#make("kvf_scores_fill", this.id, first, end, value);
  }

  fillLast(count: number, value: number): Scores {
    checkInteger("fill scores", "count", count);
    return this.#make("kvf_scores_fill_last", this.id, count, value);
  }

  concentrate(count: number): Scores {
    checkInteger("concentrate scores", "count", count, 0, this.rows);
    return this.#make("kvf_scores_concentrate", this.id, count);
  }

  topK(count: number | ArrayLike<number>): Selection {
    const counts = typeof count === "number"
      ? Array<number>(this.heads).fill(count)
      : count;
    checkLength("choose rows", "counts", counts, this.heads);
    const checked = checkIntegers("choose rows", "counts", counts, this.rows);
    return new NativeSelection(
      this.scope,
      this.scope.call("kvf_select_top", this.id, checked, this.heads),
    );
  }

  share(total: number): Uint32Array {
    checkInteger("share rows", "total", total, 0, this.heads * this.rows);
    const counts = new Uint32Array(this.heads);
    this.scope.call("kvf_scores_share", this.id, total, counts, this.heads);
    return counts;
  }

  read(): Float32Array {
    const values = new Float32Array(this.heads * this.rows);
    this.scope.call("kvf_scores_read", this.id, values, values.length);
    return values;
  }

  #other(other: Scores): number {
    const id = scoresId("combine scores", other, this.scope);
    if (other.heads !== this.heads || other.rows !== this.rows) {
      throw new RangeError(
        `Cannot combine scores as shapes must be equal: [${this.heads}, ${this.rows}] and [${other.heads}, ${other.rows}]`,
      );
    }
    return id;
  }

  #make<N extends CacheCall>(name: N, ...args: Arguments<N>): Scores {
    return new NativeScores(this.scope, this.scope.call(name, ...args));
  }
}

class NativeSelection extends ScopedObject implements Selection {
  read(): Uint32Array[] {
    const counts = new Uint32Array(this.heads);
    const rows = new Uint32Array(this.size);
    this.scope.call(
      "kvf_selection_read",
      this.id,
      counts,
      counts.length,
      rows,
      rows.length,
    );
    let end = 0;
    return Array.from(counts, (count) => rows.subarray(end, end += count));
  }
}

function scoresId(action: string, scores: Scores, scope: Scope): number {
  if (scores instanceof NativeScores) return scores.idIn(scope);
  throw new TypeError(`Cannot ${action} as the other ones are not of a layer`);
}

function selectionId(
  action: string,
  selection: Selection,
  scope: Scope,
): number {
  if (selection instanceof NativeSelection) return selection.idIn(scope);
  throw new TypeError(`Cannot ${action} as selection is not of a layer`);
}

/** A {@linkcode LayerContext} over the library. Dispose frees every score and selection that was made through it. */
export class NativeLayer implements LayerContext, Disposable {
  readonly layer: number;
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly storedHeads: number;
  readonly groupSize: number;
  readonly granularity: Granularity;
  #state: SequenceState;
  #scope: Scope;
  #length: number | undefined;

  constructor(state: SequenceState, layer: number) {
    const { shape } = state;
    this.layer = checkInteger(
      "open layer",
      "layer",
      layer,
      0,
      shape.layers - 1,
    );
    state.id.pointer;
    this.layers = shape.layers;
    this.queryHeads = shape.queryHeads;
    this.kvHeads = shape.kvHeads;
    this.headDim = shape.headDim;
    this.storedHeads = state.storedHeads;
    this.groupSize = shape.queryHeads / shape.kvHeads;
    this.granularity = state.granularity;
    this.#state = state;
    this.#scope = new Scope(state);
  }

  get length(): number {
    return this.#length ??= Math.max(...this.rowCounts());
  }

  /** Rows of each stored head. */
  rowCounts(): Uint32Array {
    const first = this.layer * this.storedHeads;
    return readRowCounts(this.#state).subarray(first, first + this.storedHeads);
  }

  observationScores(options: {
    window: number;
    groupReduce: GroupReduce;
    over?: "sum" | "mean" | "hits";
    allRows?: boolean;
    reduceFirst?: boolean;
  }): Scores {
    const action = "score rows";
    const windowQueries = Math.max(
      this.#state.observation.windowQueries,
      this.#kept?.windowQueries ?? 0,
    );
    checkInteger(action, "window", options.window, 1);
    if (options.window > windowQueries) {
      throw new RangeError(
        `Cannot ${action} as window must be at most the ${windowQueries} queries that were recorded: window is ${options.window}`,
      );
    }
    const { over = "sum" } = options;
    checkChoice(action, "over", over, ["sum", "mean", "hits"]);
    return this.#scores(
      "kvf_scores_window",
      this.layer,
      options.window,
      (over === "mean" ? WINDOW_FLAGS.mean : 0) |
        (over === "hits" ? WINDOW_FLAGS.hits : 0) |
        (options.allRows ? WINDOW_FLAGS.allRows : 0) |
        (options.reduceFirst ? WINDOW_FLAGS.reduceFirst : 0),
      reduceCode(options.groupReduce),
    );
  }

  columnMass(queries: QuerySet, groupReduce: GroupReduce): Scores {
    const { columnMasses } = this.#state.observation;
    const recorded = columnMasses.map(querySetKey);
    const key = querySetKey(queries);
    const kept = this.#kept;
    const mass = kept?.mass?.key === key
      ? kept.mass.index
      : recorded.indexOf(key);
    if (mass < 0 && typeof queries === "object" && "suffix" in queries) {
      // In the middle of a generation: the last queries are kept, and their masses follow.
      if (queries.suffix <= (kept?.windowQueries ?? 0)) {
        return this.observationScores({
          window: queries.suffix,
          groupReduce,
          allRows: true,
        });
      }
    }
    if (mass < 0) {
      throw new RangeError(
        `Cannot read column mass as prefill must have recorded its query set: "${key}" is not among [${
          recorded.map((key) => `"${key}"`).join(", ")
        }]`,
      );
    }
    return this.#scores(
      "kvf_scores_mass",
      this.layer,
      mass,
      reduceCode(groupReduce),
    );
  }

  keyNorm(): Scores {
    return this.#scores("kvf_scores_norm", this.layer, 0);
  }

  valueNorm(): Scores {
    return this.#scores("kvf_scores_norm", this.layer, 1);
  }

  channelScores(
    options: { window: number; groupReduce: GroupReduce },
  ): Scores {
    return this.#scores(
      "kvf_scores_channels",
      this.layer,
      this.#checkWindow("score channels", options.window),
      reduceCode(options.groupReduce),
    );
  }

  uniform(seed: number, rows: number = this.length): Scores {
    checkInteger("draw scores", "seed", seed);
    const counts = this.rowCounts();
    if (counts.some((n) => n !== counts[0])) {
      throw new RangeError(
        `Cannot draw scores as all heads must hold as many rows: they hold ${
          counts.join(", ")
        }`,
      );
    }
    checkInteger("draw scores", "rows", rows, 1);
    return this.#adopt(
      this.#scope.call(
        "kvf_scores_random",
        this.storedHeads,
        rows,
        seed,
        this.layer,
      ),
    );
  }

  fromArray(values: Float32Array, heads: number): Scores {
    const action = "make scores";
    checkInteger(action, "heads", heads, 1);
    if (values.length === 0 || values.length % heads !== 0) {
      throw new RangeError(
        `Cannot ${action} as values must have the same number of rows for ${heads} heads: it has ${values.length} elements`,
      );
    }
    return this.#adopt(
      this.#scope.call(
        "kvf_scores_create",
        heads,
        values.length / heads,
        Float32Array.from(values),
      ),
    );
  }

  select(rows: ArrayLike<number>[]): Selection {
    const action = "select rows";
    this.#checkHeads(action, rows.length);
    const counts = Uint32Array.from(rows, (list) => list.length);
    const flat = rows.flatMap((list, head) => {
      const checked = checkIntegers(
        action,
        `rows[${head}]`,
        list,
        this.length - 1,
      );
      const wrong = checked.findIndex((row, i) =>
        i > 0 && row <= (checked[i - 1] ?? 0)
      );
      if (wrong >= 0) {
        throw new RangeError(
          `Cannot ${action} as rows[${head}] must ascend: row ${
            checked[wrong]
          } follows row ${checked[wrong - 1]}`,
        );
      }
      return [...checked];
    });
    return new NativeSelection(
      this.#scope,
      this.#scope.call(
        "kvf_selection_create",
        counts.length,
        counts,
        Uint32Array.from(flat),
      ),
    );
  }

  retain(
    selection: Selection | null,
    options: {
      first?: number;
      last?: number;
      merge?: "midpoint" | "similarity";
    } = {},
  ): void {
    const action = "retain rows";
    const { first = 0, last = 0, merge } = options;
    checkInteger(action, "first", first);
    checkInteger(action, "last", last);
    let id = 0;
    if (selection !== null) {
      id = selectionId(action, selection, this.#scope);
      this.#checkHeads(action, selection.heads);
    }
    this.#scope.check();
    const { layer } = this;
    if (merge === undefined) {
      callSequence(this.#state, "kvf_retain", layer, id, first, last);
    } else {
      const code = checkChoice(action, "merge", merge, MERGES);
      callSequence(
        this.#state,
        "kvf_retain_merged",
        layer,
        id,
        first,
        last,
        code,
      );
    }
    this.#length = undefined;
  }

  shareDirections(
    { interpolation, exact, within }: DirectionSharing,
  ): void {
    const action = "share directions";
    if (exact !== undefined) checkInteger(action, "exact", exact);
    this.#scope.check();
    callSequence(
      this.#state,
      "kvf_share_directions",
      this.layer,
      interpolation,
      exact ?? 0,
      within ?? -1,
    );
  }

  attendSparsely(heads: readonly Sparsity[]): void {
    const action = "attend sparsely";
    checkLength(action, "heads", heads, this.queryHeads);
    this.#scope.check();
    const patterns = encodeSparsity(action, heads);
    callSequence(this.#state, "kvf_prefill_sparse", patterns, heads.length);
  }

  spreadValues(
    shares: Scores,
    { first, span }: { first: number; span: number },
  ): void {
    const action = "spread values";
    checkInteger(action, "first", first);
    checkInteger(action, "span", span, 1);
    const id = scoresId(action, shares, this.#scope);
    callSequence(
      this.#state,
      "kvf_spread_values",
      this.layer,
      id,
      first,
      span,
    );
  }

  pack(
    format: PackFormat,
    chosen: { rows?: Selection; channels?: Selection } = {},
  ): void {
    const action = "pack rows";
    const { rows, channels } = chosen;
    const kept = channels?.read()[0]?.length ?? 0;
    const encoded = encodeFormat(format, this.headDim, kept);
    const [rowsId = 0, channelsId = 0] = [rows, channels].map((selection) => {
      if (selection === undefined) return 0;
      this.#checkHeads(action, selection.heads);
      return selectionId(action, selection, this.#scope);
    });
    this.#scope.check();
    callSequence(
      this.#state,
      "kvf_pack",
      this.layer,
      encoded,
      rowsId,
      channelsId,
    );
  }

  [Symbol.dispose](): void {
    this.#scope.dispose();
  }

  get #kept() {
    return this.#state.kept[this.layer];
  }

  #checkWindow(action: string, window: number): number {
    const { windowQueries } = this.#state.observation;
    checkInteger(action, "window", window, 1);
    if (window <= windowQueries) return window;
    throw new RangeError(
      `Cannot ${action} as window must be at most the ${windowQueries} queries that prefill recorded: window is ${window}`,
    );
  }

  #checkHeads(action: string, heads: number): void {
    if (heads === 1 || heads === this.storedHeads) return;
    throw new RangeError(
      `Cannot ${action} as there must be a list for each of the ${this.storedHeads} stored heads or one for all: there are ${heads}`,
    );
  }

  #adopt(id: number): Scores {
    return new NativeScores(this.#scope, id);
  }

  /** Makes scores with a function of the sequence. */
  #scores<N extends SequenceCall>(
    name: N,
    ...args: SequenceArguments<N>
  ): Scores {
    this.#scope.check();
    return this.#adopt(callSequence(this.#state, name, ...args));
  }
}

function reduceCode(reduce: GroupReduce): number {
  return checkChoice("score rows", "groupReduce", reduce, REDUCES);
}

/**
 * Lets a policy act on one layer, frees what it made, and checks its promise.
 * @throws {RangeError} when the layer then holds more rows than `policy.maxRows` says
 */
export function actOnLayer(
  layer: NativeLayer,
  policy: Policy,
  act: (layer: NativeLayer) => void,
): void {
  const { length } = layer;
  try {
    act(layer);
    const most = policy.maxRows?.({
      layers: layer.layers,
      queryHeads: layer.queryHeads,
      kvHeads: layer.kvHeads,
      headDim: layer.headDim,
      layer: layer.layer,
      length,
      storedHeads: layer.storedHeads,
    });
    if (most === undefined) return;
    const rows = layer.rowCounts().reduce((sum, n) => sum + n, 0);
    if (rows <= most) return;
    throw new RangeError(
      `Cannot accept policy as layer ${layer.layer} may hold ${most} rows: it holds ${rows}`,
    );
  } finally {
    layer[Symbol.dispose]();
  }
}
