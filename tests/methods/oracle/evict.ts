/**
 * Which rows each eviction method keeps of a prompt.
 *
 * @module
 */
import {
  adaptiveRows,
  concentration,
  pyramidRows,
  tableRows,
} from "./budgets.ts";
import { type Choice, everything, upTo } from "./choice.ts";
import {
  columnSums,
  type Layer,
  perStoredHead,
  pool,
  probabilities,
  type Reduce,
  type Row,
  rowOf,
  sourceOf,
} from "./layer.ts";

/** A method on one layer. */
export interface Task<Options> {
  input: Layer;
  /** Query heads, or KV heads. */
  storedHeads: number;
  layer: number;
  layers: number;
  options: Options;
}

/** Options of the methods whose last queries vote. */
export interface VoteOptions {
  budget: number;
  observationWindow: number;
  poolWidth: number;
  pool: "max" | "avg";
  groupReduce: Reduce;
}

/** Every stored head keeps its best `count` candidates before the last `window` positions, and those. */
function beforeWindow(
  tokens: number,
  window: number,
  scores: Row[],
  count: (head: number) => [number, number],
): Choice[] {
  const before = tokens - window;
  return scores.map((row, head) => {
    const [least, most] = count(head);
    return {
      fixed: upTo(tokens).slice(before),
      candidates: upTo(before),
      scores: row,
      count: [Math.min(least, before), Math.min(most, before)],
    };
  });
}

/**
 * Whether a prompt stays as it is. The reference keeps prompts below the budget alone; here one that is as long as the
 * budget stays, too (promise 1 of the runtime): AdaKV, HeadKV and CAM would change it.
 */
export const fits = (tokens: number, budget: number): boolean =>
  tokens <= budget;

const unchanged = ({ input, storedHeads }: Task<unknown>): Choice[] =>
  upTo(storedHeads).map(() => everything(upTo(input.tokens)));

/** Pooled votes of the last queries for the positions before them, per stored head. */
export function votes(
  { input, storedHeads, options }: Task<VoteOptions>,
  form: "sum" | "mean" = "sum",
): Row[] {
  const { observationWindow: window, poolWidth, groupReduce } = options;
  const before = input.tokens - window;
  const sums = upTo(input.queryHeads).map((head) => {
    const all = columnSums(probabilities(input, head, before), before);
    return form === "sum" ? all : all.map((x) => x / window);
  });
  return perStoredHead(input, storedHeads, sums, groupReduce)
    .map((row) => pool(row, options.pool, poolWidth));
}

/** SnapKV. */
export function snapkv(task: Task<VoteOptions>): Choice[] {
  const { input: { tokens }, options } = task;
  const { budget, observationWindow: window } = options;
  if (tokens < budget) return unchanged(task);
  const count = budget - window;
  return beforeWindow(tokens, window, votes(task), () => [count, count]);
}

/** PyramidKV with the reference's integer budgets. */
export function pyramidkv(task: Task<VoteOptions & { beta: number }>) {
  const { input: { tokens }, layer, layers, options } = task;
  const { budget, observationWindow: window, beta } = options;
  const rows = pyramidRows({ tokens, budget, window, beta, layer, layers });
  if (rows === undefined) return unchanged(task);
  return beforeWindow(tokens, window, votes(task), () => [rows, rows]);
}

/** AdaKV. */
export function adakv(
  task: Task<VoteOptions & { floor: number; concentrate: boolean }>,
): Choice[] {
  const { input: { tokens }, options } = task;
  const { budget, observationWindow: window, floor, concentrate } = options;
  if (fits(tokens, budget)) return unchanged(task);
  const scores = votes(task, "mean");
  const weighed = concentrate
    ? scores.map((row) => {
      const factor = concentration(row, budget - window);
      return row.map((x) => x * factor);
    })
    : scores;
  const rows = adaptiveRows(weighed, budget - window, floor);
  return beforeWindow(tokens, window, scores, (head) => rows[head]!);
}

/** HeadKV with the window on top of the table. */
export function headkv(
  task: Task<VoteOptions & { headRows: number[] }>,
): Choice[] {
  const { input, storedHeads, layer, options } = task;
  const { budget, observationWindow: window, headRows } = options;
  if (fits(input.tokens, budget)) return unchanged(task);
  const rows = tableRows(headRows, layer, input.queryHeads, storedHeads);
  return beforeWindow(
    input.tokens,
    window,
    votes(task, "mean"),
    (head) => [rows[head]!, rows[head]!],
  );
}

/** H2O. */
export function h2o(
  task: Task<{ budget: number; window: number; groupReduce: Reduce }>,
): Choice[] {
  const { input, storedHeads, options } = task;
  const { budget, window, groupReduce } = options;
  if (fits(input.tokens, budget)) return unchanged(task);
  const sums = upTo(input.queryHeads)
    .map((head) => columnSums(probabilities(input, head, 0), input.tokens));
  const scores = perStoredHead(input, storedHeads, sums, groupReduce);
  const count = budget - window;
  return beforeWindow(input.tokens, window, scores, () => [count, count]);
}

/** StreamingLLM. */
export function streamingllm(
  task: Task<{ budget: number; sinks: number }>,
): Choice[] {
  const { input: { tokens }, storedHeads, options } = task;
  if (fits(tokens, options.budget)) return unchanged(task);
  const recent = tokens - (options.budget - options.sinks);
  const kept = upTo(tokens).filter((p) => p < options.sinks || p >= recent);
  return upTo(storedHeads).map(() => everything(kept));
}

/** L2Norm: the shortest keys, scored here by minus their length. */
export function l2norm(
  task: Task<{ budget: number; skipLayers: number[] }>,
): Choice[] {
  const { input, storedHeads, layer, options: { budget, skipLayers } } = task;
  if (fits(input.tokens, budget) || skipLayers.includes(layer)) {
    return unchanged(task);
  }
  return upTo(storedHeads).map((head) => ({
    fixed: [],
    candidates: upTo(input.tokens),
    scores: Float64Array.from(upTo(input.tokens), (position) => {
      const key = rowOf(
        input,
        "k",
        sourceOf(input, storedHeads, head),
        position,
      );
      return -Math.sqrt(key.reduce((sum, x) => sum + x * x, 0));
    }),
    count: [budget, budget],
  }));
}

/** The best unprotected rows of a selector that returns exactly `budget` positions, or the newest protected ones. */
function selected(
  tokens: number,
  budget: number,
  isProtected: number[],
  scores: Row[],
): Choice[] {
  const fixed = [...new Set(isProtected)].sort((a, b) => a - b);
  return scores.map((row) => {
    if (budget >= tokens) return everything(upTo(tokens));
    if (fixed.length >= budget) return everything(fixed.slice(-budget));
    const count = budget - fixed.length;
    return {
      fixed,
      candidates: upTo(tokens).filter((p) => !fixed.includes(p)),
      scores: row,
      count: [count, count],
    };
  });
}

/** Positions of NACL's proxies. */
function proxyPositions(
  tokens: number,
  { proxies, proxyMode, sinks }: {
    proxies: number;
    proxyMode: "suffix" | "prefix" | "edges";
    sinks: number;
  },
): number[] {
  const count = Math.min(tokens, proxies);
  if (count === 0) return [];
  if (proxyMode === "prefix") return upTo(count);
  const suffix = upTo(tokens).slice(tokens - count);
  if (proxyMode === "suffix") return suffix;
  const first = upTo(Math.min(tokens, sinks));
  return [...new Set([...first, ...suffix])].sort((a, b) => a - b);
}

/** NACL without draws. */
export function nacl(
  task: Task<
    {
      budget: number;
      proxies: number;
      proxyMode: "suffix" | "prefix" | "edges";
      sinks: number;
      groupReduce: Reduce;
    }
  >,
): Choice[] {
  const { input, storedHeads, options } = task;
  const proxies = proxyPositions(input.tokens, options);
  const sums = upTo(input.queryHeads).map((head) => {
    const rows = probabilities(input, head, 0);
    return columnSums(proxies.map((p) => rows[p]!), input.tokens);
  });
  const scores = perStoredHead(
    input,
    storedHeads,
    sums,
    options.groupReduce,
  );
  return selected(input.tokens, options.budget, proxies, scores);
}

/** Scissorhands with plain sums of attention. */
export function scissorhands(
  task: Task<
    {
      budget: number;
      historyWindow: number;
      sinks: number;
      window: number;
      groupReduce: Reduce;
    }
  >,
): Choice[] {
  const { input, storedHeads, options } = task;
  const { tokens } = input;
  const { budget, historyWindow, sinks, window } = options;
  const first = historyWindow === 0 ? 0 : Math.max(0, tokens - historyWindow);
  const sums = upTo(input.queryHeads)
    .map((head) => columnSums(probabilities(input, head, first), tokens));
  const scores = perStoredHead(
    input,
    storedHeads,
    sums,
    options.groupReduce,
  );
  const isProtected = upTo(tokens).filter((p) =>
    p < sinks || p >= tokens - window
  );
  return selected(tokens, budget, isProtected, scores);
}
