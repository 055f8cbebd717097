/**
 * Random cases: shapes that models have and odd ones, prompts around every length that a method asks about.
 *
 * @module
 */
import fc from "fast-check";
import { applyMethod } from "../../../eval/apply.ts";
import type { Device } from "../../../ffi/mod.ts";
import {
  type Granularity,
  resolveMethod,
  resolveOptions,
} from "../../../methods/mod.ts";
import { check, type Tally } from "./expect.ts";

/** One random case. */
export interface Case {
  method: string;
  granularity: Granularity;
  kvHeads: number;
  groupSize: number;
  headDim: number;
  tokens: number;
  layer: number;
  layers: number;
  options: Record<string, unknown>;
  /** Size of queries and keys: from nearly even attention to attention on one token. */
  scale: number;
  /** How many keys are copies of others, so that scores are equal. */
  copies: number;
  seed: number;
}

/** Methods whose choices the oracle has read. */
export const ORACLE_METHODS = [
  "fullkv",
  "streamingllm",
  "h2o",
  "snapkv",
  "pyramidkv",
  "adakv",
  "headkv",
  "l2norm",
  "nacl",
  "scissorhands",
  "quest",
  "cam",
  "think",
];

const reduction = fc.constantFrom("mean", "max", "sum");
const merge = fc.constantFrom("none", "none", "pivot", "weighted");
const upTo = (most: number, least = 0) => fc.integer({ min: least, max: most });

/** Options of voting methods beside the budget. */
const votes = {
  observationWindow: upTo(40, 1),
  poolWidth: fc.constantFrom(1, 3, 5, 7, 9, 31),
  pool: fc.constantFrom("max", "avg"),
  groupReduce: reduction,
};

/** Methods whose budget may hold the protected rows alone. */
const ALONE = ["adakv", "nacl", "scissorhands"];

/** Each method's options; `extra` is what the budget holds beyond the protected rows. */
const OPTIONS: Record<string, Record<string, fc.Arbitrary<unknown>>> = {
  fullkv: {},
  streamingllm: { sinks: upTo(12, 1), merge },
  h2o: { window: upTo(40, 1), groupReduce: reduction, merge },
  snapkv: { ...votes, merge },
  pyramidkv: { ...votes, beta: fc.constantFrom(1, 2, 5, 20, 40), merge },
  adakv: {
    ...votes,
    floor: fc.constantFrom(0, 0.1, 0.2, 0.5, 1),
    concentrate: fc.boolean(),
    merge,
  },
  headkv: { ...votes, merge },
  l2norm: {
    skipLayers: fc.constantFrom([], [0, 1], [2]),
    merge: fc.constant("none"),
  },
  nacl: {
    proxies: upTo(20, 1),
    proxyMode: fc.constantFrom("suffix", "prefix", "edges"),
    sinks: upTo(6),
    groupReduce: reduction,
    merge,
  },
  scissorhands: {
    historyWindow: fc.oneof(fc.constant(0), upTo(64)),
    sinks: upTo(8),
    window: upTo(20),
    groupReduce: reduction,
    merge,
  },
  quest: {
    pageSize: fc.constantFrom(1, 2, 7, 16, 32),
    window: upTo(20),
    denseLayers: upTo(2),
    groupReduce: reduction,
    compat: fc.constantFrom("reference", "paper"),
  },
  cam: {
    window: upTo(20, 1),
    startRatio: fc.constantFrom(0, 0.1, 0.3, 1),
    draws: fc.constant("threshold"),
    groupReduce: reduction,
  },
  think: {
    ...votes,
    pruneRatio: fc.constantFrom(0, 0.1, 0.4, 0.5, 0.9),
    fullRows: upTo(48),
    scoringQueries: upTo(64, 1),
    compat: fc.constantFrom("reference", "paper"),
  },
};

/** Cases of a method, with at most `work` elements of queries times keys. */
export function casesOf(method: string, work: number): fc.Arbitrary<Case> {
  return fc.record({
    granularity: fc.constantFrom<Granularity>("kv_head", "query_head"),
    // Few heads mostly, so that prompts may be long.
    kvHeads: fc.constantFrom(1, 1, 1, 1, 2, 2, 3, 4, 8, 32),
    groupSize: fc.constantFrom(1, 1, 2, 2, 3, 3, 4, 5, 8),
    headDim: fc.constantFrom(32, 64, 80, 96, 128),
    options: fc.record(OPTIONS[method]!),
    extra: fc.oneof(upTo(4, 1), upTo(120, 1)),
    near: fc.constantFrom(
      "any",
      "above",
      "above",
      "above",
      "window",
      "budget",
      "double",
    ),
    off: fc.constantFrom(-1, 0, 1),
    tokens: fc.oneof(upTo(40, 1), upTo(200, 1), upTo(700, 1)),
    layers: fc.constantFrom(1, 2, 3, 5, 32),
    layerAt: upTo(2 ** 20),
    scale: fc.constantFrom(0.1, 1, 1, 3),
    copies: fc.constantFrom(0, 0, 0, 3, 1000),
    rows: fc.array(upTo(90), { minLength: 8, maxLength: 8 }),
    seed: upTo(2 ** 31 - 1, 1),
  }).map((drawn) => {
    const { options, extra, near, off, layers, layerAt, rows } = drawn;
    const count = (name: string) => Number(options[name] ?? 0);
    const whole = options.compat === "reference" ? count("fullRows") : 0;
    const protects = method === "think"
      ? Math.max(count("observationWindow"), whole)
      : method === "quest"
      ? 0
      : count("observationWindow") + count("window") + count("proxies") +
        count("sinks");
    // Some may keep the protected rows alone.
    const alone = ALONE.includes(method) && protects > 0 && extra === 1;
    const budget = protects + (alone ? 0 : extra);
    const around = {
      any: drawn.tokens,
      above: budget + drawn.tokens,
      window: Math.max(protects, count("window")),
      budget,
      double: 2 * extra,
    }[near]!;
    const heads = drawn.kvHeads * drawn.groupSize;
    const most = Math.floor(Math.sqrt(work / (heads * drawn.headDim)));
    const tokens = Math.min(
      Math.max(1, near === "any" || near === "above" ? around : around + off),
      Math.max(1, most),
    );
    const layer = layerAt % layers;
    return {
      method,
      granularity: drawn.granularity,
      kvHeads: drawn.kvHeads,
      groupSize: drawn.groupSize,
      headDim: drawn.headDim,
      tokens,
      layer,
      layers,
      options: {
        ...options,
        ...(method === "fullkv" ? {} : { budget }),
        ...(method === "nacl" && options.proxyMode !== "edges"
          ? { sinks: 0 }
          : {}),
        ...(method === "headkv"
          ? {
            headRows: Array.from(
              { length: layers * heads },
              (_, i) => rows[(i + i % 7) % rows.length]!,
            ),
          }
          : {}),
      },
      scale: drawn.scale,
      copies: drawn.copies,
      seed: drawn.seed,
    };
  });
}

/** Numbers that look drawn from a normal distribution, always the same for a seed. */
export function noise(
  length: number,
  seed: number,
  scale: number,
): Float32Array {
  let state = Math.imul(seed, 2654435761) + 1 >>> 0;
  const uniform = () => {
    state = Math.imul(state ^ state >>> 15, 2246822519) + 374761393 >>> 0;
    return ((state ^ state >>> 13) >>> 0) / 2 ** 32;
  };
  return Float32Array.from(
    { length },
    () => scale * 1.7 * (uniform() + uniform() + uniform() + uniform() - 2),
  );
}

/** The tensors of a case. */
export function tensorsOf(
  { kvHeads, groupSize, headDim, tokens, scale, copies, seed }: Case,
) {
  const queryHeads = kvHeads * groupSize;
  const q = noise(queryHeads * tokens * headDim, seed, scale);
  const k = noise(kvHeads * tokens * headDim, seed + 1, scale);
  const v = noise(kvHeads * tokens * headDim, seed + 2, 1);
  for (let i = 0; i < copies; i++) {
    const [from, to] = [seed * (i + 1) % tokens, (seed + 7 * i) % tokens];
    for (let head = 0; head < kvHeads; head++) {
      const at = (head * tokens + from) * headDim;
      k.copyWithin((head * tokens + to) * headDim, at, at + headDim);
    }
  }
  return { q, k, v };
}

/** Throws unless a method does with a case what the oracle says. */
export function runCase(one: Case, device: Device, tally?: Tally): void {
  const { granularity, layer, layers } = one;
  const method = resolveMethod(one.method);
  const tensors = tensorsOf(one);
  const shape = {
    queryHeads: one.kvHeads * one.groupSize,
    kvHeads: one.kvHeads,
    headDim: one.headDim,
  };
  const applied = applyMethod({
    ...tensors,
    method,
    options: one.options,
    shape,
    granularity,
    layer,
    layers,
    device,
    rows: true,
  });
  check(
    one.method,
    {
      input: { ...shape, ...tensors, tokens: one.tokens },
      storedHeads: granularity === "kv_head" ? shape.kvHeads : shape.queryHeads,
      layer,
      layers,
      options: resolveOptions(method, one.options),
    },
    applied,
    tally,
  );
}
