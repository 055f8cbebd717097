/**
 * A decoder in doubles, one token at a time, over rows that are given: what the forward pass must compute for any group
 * size and head width, whatever became of the cache.
 *
 * @module
 */
import type { Device, NativeModelConfig } from "../../ffi/mod.ts";
import { NativeModel } from "../../ffi/mod.ts";
import { noise } from "../ffi/tiny.ts";

/** A row of a stored head: key (rotated) and value `[headDim]`, and the token's position. */
export interface CacheRow {
  key: ArrayLike<number>;
  value: ArrayLike<number>;
  position: number;
}

/** Rows of each layer and stored head. */
export type DoubleCache = CacheRow[][][];

/** One token's heads: queries, keys (both rotated) and values. */
export interface Projected {
  q: number[][];
  k: number[][];
  v: number[][];
}

/** Where a method acts. */
export interface Hooks {
  /** Changes rows of a prompt before its attention. */
  alter?(layer: number, tokens: Projected[], rows: CacheRow[][]): void;
  /** What is left of a prompt's rows. */
  evict?(
    layer: number,
    tokens: Projected[],
    rows: CacheRow[][],
  ): CacheRow[][];
  /** Rows that a step reads. */
  read?(layer: number, q: number[][], rows: CacheRow[][]): CacheRow[][];
  /** An attention probability of a query head on the row of a position. */
  seen?(layer: number, head: number, position: number, weight: number): void;
}

/** A model with the same weights in the library and in doubles. */
export class DoubleModel implements Disposable {
  /** The library's. */
  readonly native: NativeModel;
  #weights = new Map<string, Float32Array<ArrayBuffer>>();

  /** Makes weights that look random. */
  constructor(device: Device, readonly config: NativeModelConfig) {
    const { hidden, headDim, queryHeads, kvHeads, vocab, intermediate } =
      config;
    this.native = new NativeModel(device, config);
    let seed = 1;
    const load = (
      tensor: Parameters<NativeModel["load"]>[0]["tensor"],
      rows: number,
      columns: number,
      layer = 0,
      offset = 0,
    ): void => {
      const scale = offset === 0 ? 1.7 / Math.sqrt(columns) : 0.2;
      const data = noise(rows * columns, seed++).map((x) => offset + scale * x);
      this.#weights.set(`${tensor}.${layer}`, data);
      const bytes = new Uint8Array(data.buffer);
      this.native.load({ tensor, layer, rows, dtype: "f32" }, bytes);
    };
    load("embed", vocab, hidden);
    load("output", vocab, hidden);
    load("finalNorm", 1, hidden, 0, 1);
    for (let layer = 0; layer < config.layers; layer++) {
      load("attnNorm", 1, hidden, layer, 1);
      load("mlpNorm", 1, hidden, layer, 1);
      load("q", queryHeads * headDim, hidden, layer);
      load("k", kvHeads * headDim, hidden, layer);
      load("v", kvHeads * headDim, hidden, layer);
      load("o", hidden, queryHeads * headDim, layer);
      load("gate", intermediate, hidden, layer);
      load("up", intermediate, hidden, layer);
      load("down", hidden, intermediate, layer);
      if (!config.qkNorm) continue;
      load("qNorm", 1, headDim, layer, 1);
      load("kNorm", 1, headDim, layer, 1);
    }
    this.native.ready();
  }

  /** Logits after a token; its rows are appended to the cache. */
  step(
    token: number,
    position: number,
    cache: DoubleCache,
    hooks: Hooks = {},
  ): number[] {
    const { hidden, layers } = this.config;
    const embed = this.#of("embed", 0);
    let x = [...embed.subarray(token * hidden, (token + 1) * hidden)];
    for (let layer = 0; layer < layers; layer++) {
      const { q, k, v } = this.#project(x, layer, position);
      const rows = cache[layer]!;
      rows.forEach((own, head) => {
        const source = Math.floor(head * k.length / rows.length);
        own.push({ key: k[source]!, value: v[source]!, position });
      });
      const read = hooks.read?.(layer, q, rows) ?? rows;
      x = this.#finish(x, layer, this.#attend(q, layer, position, read, hooks));
    }
    return this.#logits(x);
  }

  /** Logits after a prompt, layer by layer, and its cache. */
  prefill(
    tokens: number[],
    storedHeads: number,
    hooks: Hooks = {},
  ): { logits: number[]; cache: DoubleCache } {
    const { hidden, layers } = this.config;
    const embed = this.#of("embed", 0);
    let xs = tokens.map((token) => [
      ...embed.subarray(token * hidden, (token + 1) * hidden),
    ]);
    const cache = this.emptyCache(storedHeads);
    for (let layer = 0; layer < layers; layer++) {
      const all = xs.map((x, position) => this.#project(x, layer, position));
      cache[layer]!.forEach((rows, head) => {
        const source = Math.floor(
          head * this.config.kvHeads / storedHeads,
        );
        all.forEach(({ k, v }, position) =>
          rows.push({ key: k[source]!, value: [...v[source]!], position })
        );
      });
      hooks.alter?.(layer, all, cache[layer]!);
      xs = xs.map((x, position) => {
        const seen = cache[layer]!.map((rows) => rows.slice(0, position + 1));
        const { q } = all[position]!;
        return this.#finish(
          x,
          layer,
          this.#attend(q, layer, position, seen, hooks),
        );
      });
      cache[layer] = hooks.evict?.(layer, all, cache[layer]!) ?? cache[layer]!;
    }
    return { logits: this.#logits(xs.at(-1)!), cache };
  }

  /** Queries, keys (both rotated) and values of one token. */
  #project(x: number[], layer: number, position: number): Projected {
    const { queryHeads, kvHeads, headDim, qkNorm, normEps } = this.config;
    const input = norm(x, this.#of("attnNorm", layer), normEps);
    const heads = (name: "q" | "k" | "v", count: number): number[][] => {
      const all = times(this.#of(name, layer), input);
      return Array.from({ length: count }, (_, h) => {
        const head = all.slice(h * headDim, (h + 1) * headDim);
        if (name === "v") return head;
        const scaled = qkNorm
          ? norm(head, this.#of(`${name}Norm`, layer), normEps)
          : head;
        return this.#rotated(scaled, position);
      });
    };
    return {
      q: heads("q", queryHeads),
      k: heads("k", kvHeads),
      v: heads("v", kvHeads),
    };
  }

  /** Output of the attention, and the residual stream after the layer. */
  #finish(x: number[], layer: number, attended: number[]): number[] {
    const after = add(x, times(this.#of("o", layer), attended));
    const inner = norm(
      after,
      this.#of("mlpNorm", layer),
      this.config.normEps,
    );
    const up = times(this.#of("up", layer), inner);
    const gate = times(this.#of("gate", layer), inner)
      .map((g, i) => g / (1 + Math.exp(-g)) * up[i]!);
    return add(after, times(this.#of("down", layer), gate));
  }

  #logits(x: number[]): number[] {
    const last = norm(x, this.#of("finalNorm", 0), this.config.normEps);
    return times(this.#of("output", 0), last);
  }

  /** An empty cache. */
  emptyCache(storedHeads: number): DoubleCache {
    return Array.from(
      { length: this.config.layers },
      () => Array.from({ length: storedHeads }, () => []),
    );
  }

  #of(name: string, layer: number): Float32Array {
    return this.#weights.get(`${name}.${layer}`)!;
  }

  #attend(
    q: number[][],
    layer: number,
    position: number,
    cache: CacheRow[][],
    hooks: Hooks,
  ): number[] {
    const { queryHeads, headDim } = this.config;
    const window = this.config.layerWindows[layer]!;
    return q.flatMap((query, head) => {
      const stored = cache[Math.floor(head * cache.length / queryHeads)]!;
      const rows = stored.filter((row) =>
        window === 0 || row.position > position - window
      );
      const scores = rows.map(({ key }) =>
        query.reduce((sum, x, d) => sum + x * key[d]!, 0) / Math.sqrt(headDim)
      );
      const most = Math.max(...scores);
      const weights = scores.map((s) => Math.exp(s - most));
      const total = weights.reduce((a, b) => a + b, 0);
      const out: number[] = Array(headDim).fill(0);
      rows.forEach(({ value, position: at }, i) => {
        const weight = weights[i]! / total;
        hooks.seen?.(layer, head, at, weight);
        for (let d = 0; d < headDim; d++) out[d]! += weight * value[d]!;
      });
      return out;
    });
  }

  /** Turns pairs of channels half a head apart. */
  #rotated(head: number[], position: number): number[] {
    const half = head.length / 2;
    const angles = this.config.inverseFrequencies;
    return head.map((x, d) => {
      const angle = position * angles[d % half]!;
      const other = d < half ? -head[d + half]! : head[d - half]!;
      return x * Math.cos(angle) + other * Math.sin(angle);
    });
  }

  [Symbol.dispose](): void {
    this.native[Symbol.dispose]();
  }
}

function times(matrix: Float32Array, x: number[]): number[] {
  const n = x.length;
  return Array.from({ length: matrix.length / n }, (_, row) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += matrix[row * n + i]! * x[i]!;
    return sum;
  });
}

const add = (a: number[], b: number[]) => a.map((x, i) => x + b[i]!);

function norm(x: number[], weight: Float32Array, eps: number): number[] {
  const mean = x.reduce((sum, y) => sum + y * y, 0) / x.length;
  return x.map((y, i) => y / Math.sqrt(mean + eps) * weight[i]!);
}
