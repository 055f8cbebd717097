/**
 * What packed rows say after quantising: evenly spaced codes between the least and the largest of a group.
 *
 * @module
 */
import { upTo } from "./choice.ts";
import { roundHalfEven } from "./layer.ts";

/** Rows that are packed together. */
export const PAGE = 32;

/** Whose elements share a scale. */
export interface Grouping {
  bits: number;
  /** The rows of a page in one channel, or neighbouring channels of one row. */
  axis: "channel" | "token";
  /** Channels of a group with axis `token`. */
  group: number;
}

/** Index lists into `[rows][headDim]` of a page, one list per group. */
function groupsOf(
  rows: number,
  headDim: number,
  { axis, group }: Grouping,
): number[][] {
  if (axis === "channel") {
    return upTo(headDim)
      .map((d) => upTo(rows).map((row) => row * headDim + d));
  }
  return upTo(rows).flatMap((row) =>
    upTo(Math.ceil(headDim / group)).map((g) =>
      upTo(Math.min(group, headDim - g * group))
        .map((i) => row * headDim + g * group + i)
    )
  );
}

/** Smallest distance of half-precision numbers around `x`. */
const halfStep = (x: number): number =>
  2 ** (Math.floor(Math.log2(Math.max(Math.abs(x), 2 ** -14))) - 10);

/**
 * What is wrong with a page's rows after packing, or nothing. Offset and scale of a group are half-precision numbers; a
 * value halfway between two codes may go to either where that rounding decides.
 * @param x the rows, `[rows][headDim]`; only a prompt that is packed once has a page that is not full
 * @param packed what is read after packing
 */
export function wrongCodes(
  x: Float32Array,
  packed: Float32Array,
  headDim: number,
  grouping: Grouping,
): string | undefined {
  const most = 2 ** grouping.bits - 1;
  for (
    const group of groupsOf(
      x.length / headDim,
      headDim,
      grouping,
    )
  ) {
    const values = group.map((i) => x[i]!);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const step = (high - low) / most;
    const room = 2 * halfStep(low) + most * halfStep(step) +
      1e-6 * Math.abs(high);
    for (const i of group) {
      const place = step === 0 ? 0 : (x[i]! - low) / step;
      const expected = low + step * roundHalfEven(place);
      const off = Math.abs(packed[i]! - expected);
      const halfway = Math.abs(Math.abs(place % 1) - 0.5) * step <= room;
      if (off > room + (halfway ? step : 0)) {
        return `element ${i} of ${x[i]} is ${
          packed[i]
        }, not ${expected} (from ${low} to ${high})`;
      }
    }
  }
}

/** Pairs of channels turned back by their positions' angles, or forth; `[rows][headDim]`. */
export function turned(
  rows: Float32Array,
  headDim: number,
  inverseFrequencies: Float32Array,
  first: number,
  sign: 1 | -1,
): Float64Array {
  const half = headDim / 2;
  const out = new Float64Array(rows.length);
  for (let row = 0; row < rows.length / headDim; row++) {
    for (let d = 0; d < half; d++) {
      const angle = sign * (first + row) * inverseFrequencies[d]!;
      const [a, b] = [
        rows[row * headDim + d]!,
        rows[row * headDim + d + half]!,
      ];
      out[row * headDim + d] = a * Math.cos(angle) - b * Math.sin(angle);
      out[row * headDim + d + half] = a * Math.sin(angle) + b * Math.cos(angle);
    }
  }
  return out;
}

/** Numbers of a list that differ by more than `room`. */
export function distinct(values: number[], room: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted.filter((x, i) => i === 0 || x - sorted[i - 1]! > room).length;
}
