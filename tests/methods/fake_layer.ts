/**
 * A layer without a library: a literal that satisfies the contract and records what a policy calls.
 *
 * @module
 */
import type { LayerContext, Scores, Selection } from "../../methods/types.ts";

/** One call of a policy: the primitive and its arguments. */
export type Recorded = [name: string, ...args: unknown[]];

/** A fake layer and what was called on it. */
export interface FakeLayer {
  layer: LayerContext;
  calls: Recorded[];
  /** Scores and selections not disposed yet. */
  live(): number;
}

/** Makes a fake layer of `length` rows; scores fall from 1 at row 0. */
export function fakeLayer(
  length: number,
  facts: Partial<LayerContext> = {},
): FakeLayer {
  const calls: Recorded[] = [];
  let live = 0;
  const heads = facts.storedHeads ?? 2;

  function scores(rows: number): Scores {
    live++;
    const record = (name: string, ...args: unknown[]): Scores => {
      calls.push([name, ...args]);
      return scores(rows);
    };
    return {
      heads,
      rows,
      pool: (kind, width) => record("pool", kind, width),
      affine: (factor, offset) => record("affine", factor, offset),
      concentrate: (count) => record("concentrate", count),
      add: () => record("add"),
      multiply: () => record("multiply"),
      less: () => record("less"),
      log: () => record("log"),
      relative: (lead, span) => record("relative", lead, span),
      fillSelected: (_, value) => record("fillSelected", value),
      fill: (first, end, value) => record("fill", first, end, value),
      fillLast: (count, value) => record("fillLast", count, value),
      topK(count) {
        calls.push(["topK", count]);
        const counts = typeof count === "number"
          ? Array<number>(heads).fill(count)
          : Array.from(count);
        return selection(
          counts.map((n) => Uint32Array.from({ length: n }, (_, i) => i)),
        );
      },
      share: (total) => new Uint32Array(heads).fill(Math.floor(total / heads)),
      read: () =>
        Float32Array.from({ length: heads * rows }, (_, i) => 1 - i / rows),
      [Symbol.dispose]: () => void live--,
    };
  }

  function selection(rows: Uint32Array[]): Selection {
    live++;
    return {
      heads: rows.length,
      read: () => rows,
      [Symbol.dispose]: () => void live--,
    };
  }

  function record(name: string, ...args: unknown[]): Scores {
    calls.push([name, ...args]);
    return scores(length);
  }

  const layer: LayerContext = {
    layer: 0,
    layers: 4,
    queryHeads: 4,
    kvHeads: 2,
    headDim: 8,
    length,
    rowCounts: () => Array<number>(heads).fill(length),
    storedHeads: heads,
    groupSize: 2,
    granularity: "kv_head",
    observationScores(options) {
      calls.push(["observationScores", options]);
      return scores(options.allRows ? length : length - options.window);
    },
    columnMass: (queries, reduce) => record("columnMass", queries, reduce),
    keyNorm: () => record("keyNorm"),
    valueNorm: () => record("valueNorm"),
    channelScores: (options) => record("channelScores", options),
    uniform: (seed) => record("uniform", seed),
    fromArray: () => record("fromArray"),
    select: (rows) => selection(rows.map((list) => Uint32Array.from(list))),
    retain(selection, range = {}) {
      calls.push(["retain", selection?.read().map((r) => r.length), range]);
    },
    pack: (format, chosen = {}) => void calls.push(["pack", format, chosen]),
    shareDirections: (options) => void calls.push(["shareDirections", options]),
    attendSparsely: (heads) => void calls.push(["attendSparsely", heads]),
    spreadValues: (_, options) => void calls.push(["spreadValues", options]),
    ...facts,
  };
  return { layer, calls, live: () => live };
}
