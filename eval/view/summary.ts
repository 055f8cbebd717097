/**
 * A view in a few numbers.
 *
 * @module
 */
import type { View, ViewConfiguration } from "./types.ts";

/** What a configuration held after prefill. */
export interface SnapshotSummary {
  /** Mean rows per layer and head. */
  rowsPerHead: number;
  /** Bytes in all. */
  bytes: number;
  /** Share of the marked tokens' rows that were kept, over all layers and heads; null without marked text. */
  markedShare: number | null;
}

/** Sums up what a configuration held after prefill. */
export function snapshotSummary(
  { model, highlights }: View,
  { heads, snapshots }: ViewConfiguration,
): SnapshotSummary {
  const { kept, ownedBytes } = snapshots[0]!;
  const all = model.layers * heads;
  const stride = kept.length / all;
  let rows = 0;
  for (const byte of kept) for (let b = byte; b; b &= b - 1) rows++;
  let marked = 0, wanted = 0;
  for (const [first, end] of highlights) {
    wanted += all * (end - first);
    for (let head = 0; head < all; head++) {
      for (let i = first; i < end; i++) {
        marked += kept[head * stride + (i >> 3)]! >> (i & 7) & 1;
      }
    }
  }
  return {
    rowsPerHead: rows / all,
    bytes: ownedBytes,
    markedShare: wanted === 0 ? null : marked / wanted,
  };
}
