/**
 * Counting what a cache kept. Part of the page, but free of it: the tests of the page count with it, too.
 *
 * @module
 */
import { decodeProbability } from "../../view/types.ts";
import type { Snapshot, View, ViewConfiguration } from "../../view/types.ts";

/** Which layers and KV heads are looked at; -1 is all. */
export interface Choice {
  layer: number;
  head: number;
}

/** Indices from 0 to `n - 1`, or the one chosen. */
function chosen(n: number, one: number): number[] {
  return one < 0 ? Array.from({ length: n }, (_, i) => i) : [one];
}

/** Stored heads that belong to the chosen KV head. */
function storedHeads(
  view: View,
  { heads }: ViewConfiguration,
  head: number,
): number[] {
  const group = heads / view.model.kvHeads;
  return chosen(view.model.kvHeads, head).flatMap((kv) =>
    Array.from({ length: group }, (_, i) => kv * group + i)
  );
}

/** The snapshot after so many generated tokens, or the last one before. */
export function snapshotAt(
  { snapshots }: ViewConfiguration,
  generated: number,
): Snapshot {
  return snapshots.findLast((one) => one.generated <= generated) ??
    snapshots[0]!;
}

/** How many of the chosen heads hold each position, for every layer, of `of` heads. */
export interface LayerCounts {
  /** `[layers][positions]`. */
  layers: Uint16Array[];
  /** Heads that were counted in a layer. */
  of: number;
}

/** Counts the heads that hold each position, layer by layer. */
export function countLayers(
  view: View,
  configuration: ViewConfiguration,
  { kept }: Snapshot,
  head: number,
): LayerCounts {
  const heads = storedHeads(view, configuration, head);
  const stride = kept.length / (view.model.layers * configuration.heads);
  const layers = Array.from({ length: view.model.layers }, (_, layer) => {
    const counts = new Uint16Array(8 * stride);
    for (const h of heads) {
      const from = (layer * configuration.heads + h) * stride;
      for (let i = 0; i < stride; i++) {
        // Bits are few and far between, or nearly all there.
        for (let byte = kept[from + i]!; byte !== 0; byte &= byte - 1) {
          counts[8 * i + 31 - Math.clz32(byte & -byte)]!++;
        }
      }
    }
    return counts;
  });
  return { layers, of: heads.length };
}

/** Sums the counts of the chosen layers up. */
export function sumLayers(
  { layers, of }: LayerCounts,
  layer: number,
): { counts: Uint16Array; of: number } {
  if (layer >= 0) return { counts: layers[layer]!, of };
  const counts = new Uint16Array(layers[0]!.length);
  for (const one of layers) {
    for (let i = 0; i < counts.length; i++) counts[i]! += one[i]!;
  }
  return { counts, of: of * layers.length };
}

/** Rows of each head: `[layers][heads]`. */
export function rowCounts(
  view: View,
  { heads }: ViewConfiguration,
  { kept }: Snapshot,
): number[][] {
  const stride = kept.length / (view.model.layers * heads);
  return Array.from(
    { length: view.model.layers },
    (_, layer) =>
      Array.from({ length: heads }, (_, head) => {
        const from = (layer * heads + head) * stride;
        let rows = 0;
        for (let i = 0; i < stride; i++) {
          for (let byte = kept[from + i]!; byte; byte &= byte - 1) rows++;
        }
        return rows;
      }),
  );
}

/** Rows of a view's scores that belong to the chosen layers and heads. */
function scoreRows({ model }: View, { layer, head }: Choice): number[] {
  return chosen(model.layers, layer).flatMap((one) =>
    chosen(model.kvHeads, head).map((kv) => one * model.kvHeads + kv)
  );
}

/** Attention that the end of the prompt gives to one token: mean over the chosen layers and heads. */
export function meanScore(view: View, choice: Choice, token: number): number {
  const n = view.tokens.length;
  const rows = scoreRows(view, choice);
  return rows.reduce(
    (sum, row) => sum + decodeProbability(view.scores[row * n + token]!),
    0,
  ) / rows.length;
}

/** Attention that the end of the prompt gives to each token: mean over the chosen layers and heads. */
export function meanScores(view: View, choice: Choice): Float64Array {
  const n = view.tokens.length;
  const out = new Float64Array(n);
  const table = Float64Array.from(
    { length: 256 },
    (_, i) => decodeProbability(i),
  );
  const rows = scoreRows(view, choice);
  for (const row of rows) {
    for (let i = 0; i < n; i++) {
      out[i]! += table[view.scores[row * n + i]!]! / rows.length;
    }
  }
  return out;
}

/** Shades, 0 for nothing to 8 for all. */
export function shadeOfShare(share: number): number {
  return Math.ceil(8 * share);
}

/** Shade of an attention probability: equal steps of the logarithm from 1/10000 to 1. */
export function shadeOfScore(p: number): number {
  if (!(p > 1e-4)) return 0;
  return Math.min(8, Math.ceil(2 * (Math.log10(p) + 4)));
}
