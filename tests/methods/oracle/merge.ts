/**
 * What methods make of the rows they keep: merged rows, values handed on, keys without channels, shared directions.
 *
 * @module
 */
import { type Choice, NEAR, upTo } from "./choice.ts";
import { fits, snapkv, type Task, type VoteOptions } from "./evict.ts";
import {
  columnSums,
  type Layer,
  perStoredHead,
  probabilities,
  type Reduce,
  reduce,
  type Row,
  rowOf,
  sourceOf,
} from "./layer.ts";

/** Rows of one head, and whether a near tie makes them uncertain. */
export interface Rows {
  keys: Row[];
  values: Row[];
  uncertain: boolean;
}

const norm = (x: ArrayLike<number>): number =>
  Math.sqrt(Array.from(x).reduce((sum, y) => sum + y * y, 0));

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((sum, x, d) => sum + x * b[d]!, 0);

/** The rows of a head with the dropped ones merged into the kept row of the most similar key. */
export function merged(
  input: Layer,
  source: number,
  kept: number[],
  how: "pivot" | "weighted",
): Rows {
  const key = (p: number) => rowOf(input, "k", source, p);
  const value = (p: number) => rowOf(input, "v", source, p);
  const units = kept.map((p) => {
    const length = Math.max(norm(key(p)), 1e-6);
    return Float64Array.from(key(p), (x) => x / length);
  });
  const keys = kept.map((p) => Float64Array.from(key(p)));
  const values = kept.map((p) => Float64Array.from(value(p)));
  const weights = kept.map(() => 1);
  const isKept = new Set(kept);
  let uncertain = false;
  for (const p of upTo(input.tokens)) {
    if (isKept.has(p)) continue;
    const length = Math.max(norm(key(p)), 1e-6);
    const similar = units.map((unit) => dot(key(p), unit) / length);
    const order = upTo(kept.length).sort((a, b) => similar[b]! - similar[a]!);
    const target = order[0]!;
    const second = order[1];
    if (second !== undefined && similar[target]! - similar[second]! < 1e-5) {
      uncertain = true;
    }
    const weight = how === "pivot"
      ? 1
      : Math.max((similar[target]! + 1) / 2, 1e-6);
    weights[target]! += weight;
    const add = (out: Row, x: ArrayLike<number>, own: ArrayLike<number>) => {
      for (let d = 0; d < out.length; d++) {
        out[d]! += how === "pivot" ? (x[d]! + own[d]!) / 2 : weight * x[d]!;
      }
    };
    add(keys[target]!, key(p), key(kept[target]!));
    add(values[target]!, value(p), value(kept[target]!));
  }
  for (const rows of [keys, values]) {
    rows.forEach((row, i) => row.forEach((x, d) => row[d] = x / weights[i]!));
  }
  return { keys, values, uncertain };
}

/** Options of CAM. */
export interface CamOptions {
  budget: number;
  window: number;
  startRatio: number;
  groupReduce: Reduce;
}

/** CAM: what each head keeps, and its values after the hand-on, with merges where the probability is above one half. */
export function cam(
  { input, storedHeads, options }: Task<CamOptions>,
): { choices: Choice[]; values: Row[][]; uncertain: boolean[] } {
  const { tokens } = input;
  const { budget, window, startRatio, groupReduce } = options;
  const plain = upTo(storedHeads).map((head) =>
    upTo(tokens).map((p) =>
      Float64Array.from(
        rowOf(input, "v", sourceOf(input, storedHeads, head), p),
      )
    )
  );
  if (fits(tokens, budget)) {
    return {
      choices: plain.map(() => ({
        fixed: upTo(tokens),
        candidates: [],
        scores: new Float64Array(),
        count: [0, 0],
      })),
      values: plain,
      uncertain: plain.map(() => false),
    };
  }
  const before = tokens - window;
  const perQueryHead = upTo(input.queryHeads)
    .map((head) => probabilities(input, head, before));
  const size = input.queryHeads / storedHeads;
  const blocks = upTo(storedHeads).map((h) =>
    upTo(window).map((r) =>
      reduce(
        perQueryHead.slice(h * size, (h + 1) * size).map((rows) => rows[r]!),
        groupReduce,
      )
    )
  );
  const start = Math.ceil(startRatio * tokens);
  const uncertain = plain.map(() => false);
  blocks.forEach((rows, head) => {
    const mean = columnSums(rows, tokens).map((x) => x / window);
    const most = (from: number, to: number) =>
      mean.subarray(from, to).reduce((a, b) => Math.max(a, b), -Infinity);
    const ofStart = most(0, start);
    for (let t = start + window; t < tokens; t++) {
      const victim = t - window;
      const share = mean[victim]! / Math.max(ofStart, most(victim, t));
      const probability = Number.isNaN(share)
        ? 0
        : Math.min(1, Math.max(0, share));
      if (Math.abs(probability - 0.5) < NEAR) uncertain[head] = true;
      if (!(probability > 0.5)) continue;
      const from = plain[head]![victim]!;
      for (let p = victim + 1; p <= t; p++) {
        from.forEach((x, d) => plain[head]![p]![d]! += x / window);
      }
    }
  });
  const count = budget - window;
  const choices = blocks.map((rows): Choice => ({
    fixed: upTo(tokens).slice(before),
    candidates: upTo(before),
    scores: columnSums(rows, tokens),
    count: [count, count],
  }));
  return { choices, values: plain, uncertain };
}

/** Options of ThinK. */
export interface ThinkOptions extends VoteOptions {
  pruneRatio: number;
  fullRows: number;
  scoringQueries: number;
}

/** ThinK: what each head keeps. */
export const think = (task: Task<ThinkOptions>): Choice[] => snapkv(task);

/** ThinK: the first rows of the list in score order with the window at its end. */
export function earlyRows(choice: Choice, count: number): Choice {
  const chosen = choice.count[1];
  const best = Math.min(count, chosen);
  return {
    ...choice,
    fixed: choice.fixed.slice(0, count - best),
    count: [best, best],
  };
}

/** ThinK: scores of the channels of a head's keys, a group's queries reduced; the smallest are dropped. */
export function channelScores(
  { input, storedHeads, options }: Task<ThinkOptions>,
  head: number,
  kept: number[],
): Row {
  const { tokens, headDim, queryHeads } = input;
  const mean = (rows: ArrayLike<number>[]): Row =>
    Float64Array.from(
      { length: headDim },
      (_, d) => rows.reduce((sum, row) => sum + row[d]! ** 2, 0) / rows.length,
    );
  const first = tokens - Math.min(options.scoringQueries, tokens);
  const ofQueries = perStoredHead(
    input,
    storedHeads,
    upTo(queryHeads).map((q) =>
      mean(upTo(tokens).slice(first).map((p) => rowOf(input, "q", q, p)))
    ),
    options.groupReduce,
  )[head]!;
  const source = sourceOf(input, storedHeads, head);
  const ofKeys = mean(kept.map((p) => rowOf(input, "k", source, p)));
  return ofQueries.map((x, d) => x * ofKeys[d]!);
}

/** MiniCache: two layers' rows of one head after they share directions, and the positions that stay exact. */
export function shared(
  current: ArrayLike<number>[],
  previous: ArrayLike<number>[],
  t: number,
  keepRatio: number,
): { current: Row[]; previous: Row[]; distance: Row; exact: number } {
  const eps = 1e-6;
  const rows = current.map((x, i) => {
    const y = previous[i]!;
    const [a, b] = [Math.max(norm(x), eps), Math.max(norm(y), eps)];
    const cosine = Math.min(1 - eps, Math.max(eps - 1, dot(x, y) / a / b));
    const angle = Math.acos(cosine);
    const sine = Math.sin(angle);
    const [ofPrevious, ofCurrent] = sine > eps
      ? [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine]
      : [1 - t, t];
    const mixed = Float64Array.from(
      x,
      (xd, d) => ofPrevious * y[d]! / b + ofCurrent * xd / a,
    );
    const length = Math.max(norm(mixed), eps);
    const unit = mixed.map((z) => z / length);
    return {
      distance: angle / Math.PI,
      current: unit.map((z) => z * a),
      previous: unit.map((z) => z * b),
    };
  });
  return {
    current: rows.map((row) => row.current),
    previous: rows.map((row) => row.previous),
    distance: Float64Array.from(rows, (row) => row.distance),
    exact: Math.min(rows.length, Math.ceil(rows.length * keepRatio)),
  };
}
