// deno-lint-ignore-file camelcase -- fields are named as in csrc/kvf.h
/**
 * Step programs: what a policy's `decode` records, and its form for the library.
 *
 * @module
 */
import type {
  DecodeRecorder,
  EvictOptions,
  GroupReduce,
  ModelShape,
  PageOptions,
  Policy,
  QuerySet,
  Statistic,
} from "../methods/types.ts";
import { checkChoice, checkInteger, checkIntegers } from "./_check.ts";
import { callSequence, type SequenceState } from "./_state.ts";
import { OP, OP_KINDS, REDUCES, STATISTICS } from "./_structs.ts";
import { type MergedObservation, querySetKey } from "./observe.ts";

/** One operation, as the library names its fields; missing fields are 0. `csrc/kvf.h` says which kind has which. */
export interface Operation {
  /** What it does. */
  kind: "mass" | "queries" | "evict" | "pages" | "relative";
  /** Stored head; every one when missing. */
  head?: number;
  /** Acts when the number of tokens seen is a multiple of it. */
  every?: number;
  /** Acts when the head holds more rows. */
  above?: number;
  /** Rows left or attended to. */
  keep?: number;
  /** Positions below it are special. */
  first?: number;
  /** The last so many tokens are special. */
  last?: number;
  /** What is compared. */
  statistic?: number;
  /** Reduction over the group. */
  reduce?: number;
  /** 1: rows that stay are drawn. */
  draw?: number;
  /** Seed of the draws. */
  seed?: number;
  /** Recorded column mass to start from. */
  from?: number;
  /** Rows of a page. */
  page_rows?: number;
  /** 1: exactly `keep` rows. */
  cut?: number;
  /** Temperature of the draws. */
  temperature?: number;
  /** Factor on the mass in each step. */
  decay?: number;
}

/** What a recorder must know of a layer. */
export interface RecorderFacts extends ModelShape {
  /** Index of the layer. */
  layer: number;
  /** Rows of each stored head. */
  rows: readonly number[];
  /** What prefill recorded. */
  observation: MergedObservation;
}

const NONE = 0xffffffff;

/** Rows whose masses are kept together: `KV_SEGMENT_ROWS` of the library. */
export const SEGMENT_ROWS = 512;
/** Pages whose bounds are kept together: `KV_BOUND_BLOCKS` of the library. */
export const BOUND_BLOCKS = 32;

/** A statistic as the library knows it. */
class NamedStatistic implements Statistic {
  readonly statistic: keyof typeof STATISTICS;
  readonly reduce: number;
  readonly owner: object;

  constructor(
    owner: object,
    statistic: keyof typeof STATISTICS,
    groupReduce: GroupReduce,
  ) {
    this.owner = owner;
    this.statistic = statistic;
    this.reduce = checkChoice("record", "groupReduce", groupReduce, REDUCES);
  }
}

/** Records operations; carries none out. */
class Recorder implements DecodeRecorder {
  readonly layer: number;
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly storedHeads: number;
  readonly groupSize: number;
  readonly rows: readonly number[];
  readonly ops: Operation[] = [];
  #observation: MergedObservation;
  #every = 1;
  #above: readonly number[] | undefined;

  constructor(facts: RecorderFacts) {
    this.layer = facts.layer;
    this.layers = facts.layers;
    this.queryHeads = facts.queryHeads;
    this.kvHeads = facts.kvHeads;
    this.headDim = facts.headDim;
    this.rows = facts.rows;
    this.storedHeads = facts.rows.length;
    this.groupSize = facts.queryHeads / facts.kvHeads;
    this.#observation = facts.observation;
  }

  mass(
    options: {
      from?: QuerySet;
      decay?: number;
      groupReduce?: GroupReduce;
    } = {},
  ): Statistic {
    const { from, decay = 1, groupReduce = "mean" } = options;
    if (!(decay >= 0 && Number.isFinite(decay))) {
      throw new RangeError(
        `Cannot record mass as decay must be finite and >= 0: decay is ${decay}`,
      );
    }
    let index = NONE;
    if (from !== undefined) {
      const keys = this.#observation.columnMasses.map(querySetKey);
      index = keys.indexOf(querySetKey(from));
      if (index < 0) {
        throw new RangeError(
          `Cannot record mass as prefill must have recorded the query set it goes on from: "${
            querySetKey(from)
          }" is not among [${keys.map((key) => `"${key}"`).join(", ")}]`,
        );
      }
    }
    this.#add({ kind: "mass", from: index, decay });
    return new NamedStatistic(this, "mass", groupReduce);
  }

  recentMass(
    options: { window: number; groupReduce?: GroupReduce },
  ): Statistic {
    this.#keepQueries(options.window);
    return new NamedStatistic(this, "window", options.groupReduce ?? "mean");
  }

  recentHits(
    options: { window: number; groupReduce?: GroupReduce },
  ): Statistic {
    this.#keepQueries(options.window);
    return new NamedStatistic(this, "hits", options.groupReduce ?? "mean");
  }

  position(): Statistic {
    return new NamedStatistic(this, "position", "mean");
  }

  every(tokens: number, body: () => void): void {
    checkInteger("record", "every", tokens, 1);
    const before = this.#every;
    this.#every = tokens;
    try {
      body();
    } finally {
      this.#every = before;
    }
  }

  whenRowsExceed(budget: number | ArrayLike<number>, body: () => void): void {
    const before = this.#above;
    this.#above = this.#perHead("budget", budget);
    try {
      body();
    } finally {
      this.#above = before;
    }
  }

  evict(statistic: Statistic, options: EvictOptions = {}): void {
    const action = "record eviction";
    const above = this.#above;
    if (above === undefined) {
      throw new TypeError(
        `Cannot ${action} as it must be recorded inside whenRowsExceed: it is not`,
      );
    }
    if (!(statistic instanceof NamedStatistic) || statistic.owner !== this) {
      throw new TypeError(
        `Cannot ${action} as the statistic must be of this recorder: it is not`,
      );
    }
    const keep = options.keep === undefined
      ? above
      : this.#perHead("keep", options.keep);
    const { first = 0, last = 0, draw } = options;
    const common: Operation = {
      kind: "evict",
      every: this.#every,
      first: checkInteger(action, "first", first),
      last: checkInteger(action, "last", last),
      statistic: STATISTICS[statistic.statistic],
      reduce: statistic.reduce,
      ...(draw === undefined ? {} : {
        draw: 1,
        seed: checkInteger(action, "seed", draw.seed),
        temperature: draw.temperature,
      }),
    };
    const same = above.every((n, h) => n === above[0] && keep[h] === keep[0]);
    for (const [head, n] of above.entries()) {
      const least = keep[head] ?? 0;
      checkInteger(action, "keep", least, Math.max(1, first + last), n);
      if (same && head > 0) break;
      this.ops.push({
        ...common,
        head: same ? NONE : head,
        above: n,
        keep: least,
      });
    }
  }

  attendByPages(options: PageOptions): void {
    const action = "record page choice";
    const { pageRows, budget, recent = 0, groupReduce = "mean" } = options;
    this.#add({
      kind: "pages",
      page_rows: checkInteger(action, "pageRows", pageRows, 1, 65536),
      keep: checkInteger(action, "budget", budget, 1),
      last: checkInteger(action, "recent", recent),
      reduce: checkChoice(action, "groupReduce", groupReduce, REDUCES),
      cut: options.exact ? 1 : 0,
    });
  }

  countKeptRows(first: number): void {
    this.#add({
      kind: "relative",
      first: checkInteger("record", "first", first, 1),
    });
  }

  #keepQueries(window: number): void {
    this.#add({
      kind: "queries",
      last: checkInteger("record", "window", window, 1, 65536),
    });
  }

  #add(op: Operation): void {
    const other = this.ops.find(({ kind }) => kind === op.kind);
    if (other === undefined) this.ops.push(op);
    else if (JSON.stringify(other) !== JSON.stringify(op)) {
      throw new TypeError(
        `Cannot record "${op.kind}" as it must come once, or in the same way: ${
          JSON.stringify(other)
        } and ${JSON.stringify(op)}`,
      );
    }
  }

  #perHead(name: string, value: number | ArrayLike<number>): number[] {
    const list = typeof value === "number"
      ? Array<number>(this.storedHeads).fill(value)
      : Array.from(value);
    if (list.length !== this.storedHeads) {
      throw new RangeError(
        `Cannot record as ${name} must have a number for each of the ${this.storedHeads} stored heads: it has ${list.length}`,
      );
    }
    return [...checkIntegers("record", name, list, 0x7fffffff)];
  }
}

/** The operations of a policy for one layer; none when it has nothing to do in decode. */
export function recordProgram(
  policy: Policy,
  facts: RecorderFacts,
): Operation[] {
  const recorder = new Recorder(facts);
  policy.decode?.(recorder);
  const { ops } = recorder;
  if (policy.again !== undefined) keepObservation(ops, policy, facts);
  return ops;
}

/** What `observe` asks for goes on during decode, so that a policy can act again. */
function keepObservation(
  ops: Operation[],
  { observe }: Policy,
  { observation }: RecorderFacts,
): void {
  let window = observe?.windowQueries ?? 0;
  for (const set of observe?.columnMasses ?? []) {
    if (set === "all") {
      const keys = observation.columnMasses.map(querySetKey);
      merge(ops, { kind: "mass", from: keys.indexOf("all"), decay: 1 });
    } else if ("suffix" in set && !("prefix" in set)) {
      if (set.suffix > (observation.windowQueries ?? 0)) {
        throw new RangeError(
          `Cannot act again during generation as observe.windowQueries must be at least the suffix of its column mass: it is ${observation.windowQueries}, suffix is ${set.suffix}`,
        );
      }
      window = Math.max(window, set.suffix);
    } else {
      throw new RangeError(
        `Cannot act again during generation as its column masses must go on with new queries: "${
          querySetKey(set)
        }" is of the prompt alone`,
      );
    }
  }
  if (window > 0) merge(ops, { kind: "queries", last: window });
}

function merge(ops: Operation[], op: Operation): void {
  const other = ops.find(({ kind }) => kind === op.kind);
  if (other === undefined) ops.push(op);
  else if (JSON.stringify(other) !== JSON.stringify(op)) {
    throw new RangeError(
      `Cannot act again during generation as its decode program must keep the same "${op.kind}" as observe: ${
        JSON.stringify(other)
      } and ${JSON.stringify(op)}`,
    );
  }
}

/** Operations as C reads them: `[n_op] kvf_op`. */
function encodeProgram(
  ops: readonly Operation[],
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ops.length * OP.size);
  ops.forEach((op, i) => {
    const fields = Object.fromEntries(OP.fields.map(([name]) => [name, 0]));
    bytes.set(
      OP.encode({
        ...fields as Parameters<typeof OP.encode>[0],
        head: NONE,
        ...op,
        kind: OP_KINDS[op.kind],
      }),
      i * OP.size,
    );
  });
  return bytes;
}

/** Gives a layer of a sequence its step program. */
export function setProgram(
  state: SequenceState,
  layer: number,
  ops: readonly Operation[],
): void {
  callSequence(
    state,
    "kvf_sequence_program",
    layer,
    encodeProgram(ops),
    ops.length,
  );
  const queries = ops.find(({ kind }) => kind === "queries");
  const mass = ops.find(({ kind }) => kind === "mass");
  state.kept[layer] = {
    pages: ops.some(({ kind }) => kind === "pages"),
    windowQueries: queries?.last ?? 0,
    ...(mass === undefined || mass.from === NONE ? {} : {
      mass: {
        index: mass.from ?? 0,
        key: querySetKey(state.observation.columnMasses[mass.from ?? 0]!),
      },
    }),
  };
}
