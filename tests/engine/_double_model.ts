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
  step(token: number, position: number, cache: DoubleCache): number[] {
    const { hidden, layers, normEps } = this.config;
    const embed = this.#weights.get("embed.0")!;
    let x = [...embed.subarray(token * hidden, (token + 1) * hidden)];
    for (let layer = 0; layer < layers; layer++) {
      const input = norm(x, this.#of("attnNorm", layer), normEps);
      const out = this.#attention(input, layer, position, cache[layer]!);
      x = add(x, times(this.#of("o", layer), out));
      const inner = norm(x, this.#of("mlpNorm", layer), normEps);
      const up = times(this.#of("up", layer), inner);
      const gate = times(this.#of("gate", layer), inner)
        .map((g, i) => g / (1 + Math.exp(-g)) * up[i]!);
      x = add(x, times(this.#of("down", layer), gate));
    }
    return times(
      this.#of("output", 0),
      norm(x, this.#of("finalNorm", 0), normEps),
    );
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

  #attention(
    input: number[],
    layer: number,
    position: number,
    cache: CacheRow[][],
  ): number[] {
    const { queryHeads, kvHeads, headDim, qkNorm, normEps } = this.config;
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
    const q = heads("q", queryHeads);
    const [k, v] = [heads("k", kvHeads), heads("v", kvHeads)];
    cache.forEach((rows, head) => {
      const source = Math.floor(head * kvHeads / cache.length);
      rows.push({ key: k[source]!, value: v[source]!, position });
    });
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
      rows.forEach(({ value }, i) => {
        for (let d = 0; d < headDim; d++) {
          out[d]! += weights[i]! / total * value[d]!;
        }
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
