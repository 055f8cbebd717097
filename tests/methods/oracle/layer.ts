/**
 * A slow, plain second reading of the methods: one layer's tensors in doubles, and what is computed from them alone.
 *
 * Nothing here is shared with the methods or the library, so that a misreading is not made twice.
 *
 * @module
 */

/** Queries `[queryHeads, tokens, headDim]`, keys and values `[kvHeads, tokens, headDim]` of one layer. */
export interface Layer {
  queryHeads: number;
  kvHeads: number;
  tokens: number;
  headDim: number;
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
}

/** Values of one head by position. */
export type Row = Float64Array<ArrayBuffer>;

/** One row of a tensor, `[headDim]`. */
export function rowOf(
  layer: Layer,
  what: "q" | "k" | "v",
  head: number,
  position: number,
): Float32Array {
  const at = (head * layer.tokens + position) * layer.headDim;
  return layer[what].subarray(at, at + layer.headDim);
}

/** Query heads of one KV head. */
export const groupSize = (layer: Layer): number =>
  layer.queryHeads / layer.kvHeads;

/** The KV head of a query head: groups are KV-head major. */
const kvHeadOf = (layer: Layer, queryHead: number): number =>
  Math.floor(queryHead / groupSize(layer));

/** The KV head whose rows a stored head holds. */
export const sourceOf = (
  layer: Layer,
  storedHeads: number,
  head: number,
): number => storedHeads === layer.kvHeads ? head : kvHeadOf(layer, head);

/** Causal softmax probabilities of a query head's rows from `first` on, `[tokens - first][tokens]`. */
export function probabilities(
  layer: Layer,
  queryHead: number,
  first: number,
): Row[] {
  const { tokens, headDim } = layer;
  const kvHead = kvHeadOf(layer, queryHead);
  return Array.from({ length: tokens - first }, (_, r) => {
    const i = first + r;
    const q = rowOf(layer, "q", queryHead, i);
    const row = new Float64Array(tokens);
    let most = -Infinity;
    for (let j = 0; j <= i; j++) {
      const k = rowOf(layer, "k", kvHead, j);
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[d]! * k[d]!;
      row[j] = dot / Math.sqrt(headDim);
      most = Math.max(most, row[j]!);
    }
    let total = 0;
    for (let j = 0; j <= i; j++) {
      row[j] = Math.exp(row[j]! - most);
      total += row[j]!;
    }
    for (let j = 0; j <= i; j++) row[j]! /= total;
    return row;
  });
}

/** Sum of rows, column by column. */
export function columnSums(rows: Row[], columns: number): Row {
  const sums = new Float64Array(columns);
  for (const row of rows) {
    for (let j = 0; j < columns; j++) sums[j]! += row[j]!;
  }
  return sums;
}

/** How the query heads of one KV head agree. */
export type Reduce = "mean" | "max" | "sum";

/** Reduces lists of equal length to one. */
export function reduce(rows: Row[], how: Reduce): Row {
  return rows[0]!.map((_, j) => {
    const column = rows.map((row) => row[j]!);
    if (how === "max") return Math.max(...column);
    const sum = column.reduce((a, b) => a + b, 0);
    return how === "sum" ? sum : sum / rows.length;
  });
}

/** One list per stored head, out of one per query head: as they are, or each group reduced. */
export function perStoredHead(
  layer: Layer,
  storedHeads: number,
  perQueryHead: Row[],
  how: Reduce,
): Row[] {
  const size = layer.queryHeads / storedHeads;
  return Array.from(
    { length: storedHeads },
    (_, h) => reduce(perQueryHead.slice(h * size, (h + 1) * size), how),
  );
}

/** Pooling of stride 1 with `width >> 1` of padding on both sides; averages count padding as zeros. */
export function pool(scores: Row, kind: "max" | "avg", width: number): Row {
  const half = Math.floor(width / 2);
  const length = scores.length + 2 * half - width + 1;
  return Float64Array.from({ length: Math.max(0, length) }, (_, i) => {
    const inside = scores.subarray(
      Math.max(0, i - half),
      Math.max(0, i - half + width),
    );
    return kind === "max"
      ? inside.reduce((a, b) => Math.max(a, b), -Infinity)
      : inside.reduce((a, b) => a + b, 0) / width;
  });
}

/** Nearest integer, the even one of two that are equally near. */
export function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}
