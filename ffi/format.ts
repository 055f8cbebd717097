/**
 * Packed formats on their way to the library.
 *
 * @module
 */
import type { PackedPart, PackFormat } from "../methods/types.ts";
import { checkChoice, checkInteger } from "./_check.ts";
import { AXES, FORMAT, FORMAT_FLAGS, LEVELS } from "./_structs.ts";

/** Rows of one page: `KVF_PAGE_ROWS`. */
export const PAGE_ROWS = 32;

const ACTION = "pack rows";

/** Elements of a page that a share stands for; a share above 0 is at least one. */
function outlierCount(part: PackedPart, channels: number): number {
  const { outliers = 0 } = part;
  if (!(outliers >= 0 && outliers <= 0.25)) {
    throw new RangeError(
      `Cannot ${ACTION} as outliers must be a share from 0 to 0.25: outliers is ${outliers}`,
    );
  }
  return Math.ceil(outliers * channels * PAGE_ROWS);
}

function encodePart(part: PackedPart | undefined, channels: number) {
  if (part === undefined) {
    return { bits: 0, axis: 0, group: 0, levels: 0, outliers: 0, rank: 0 };
  }
  const { bits, axis, group = 0, levels = "even", rank = 0 } = part;
  return {
    bits: checkInteger(ACTION, "bits", bits, 2, 8),
    axis: checkChoice(ACTION, "axis", axis, AXES),
    group: checkInteger(ACTION, "group", group, 0),
    levels: checkChoice(ACTION, "levels", levels, LEVELS),
    outliers: outlierCount(part, channels),
    rank: checkInteger(ACTION, "rank", rank, 0),
  };
}

/**
 * Packs a format into the library's struct.
 * @param format the format
 * @param headDim elements of a head
 * @param channels key channels that are kept, 0 for all
 */
export function encodeFormat(
  format: PackFormat,
  headDim: number,
  channels: number,
): Uint8Array<ArrayBuffer> {
  const { residual = 0, once = false, keys, values } = format;
  const key = encodePart(keys, channels || headDim);
  const value = encodePart(values, headDim);
  return FORMAT.encode({
    flags: (once ? FORMAT_FLAGS.once : 0) |
      (keys?.unrotated ? FORMAT_FLAGS.unrotated : 0),
    residual: checkInteger(ACTION, "residual", residual, 0),
    key_channels: channels,
    key_bits: key.bits,
    key_axis: key.axis,
    key_group: key.group,
    key_levels: key.levels,
    key_outliers: key.outliers,
    key_rank: key.rank,
    value_bits: value.bits,
    value_axis: value.axis,
    value_group: value.group,
    value_levels: value.levels,
    value_outliers: value.outliers,
    value_rank: value.rank,
  });
}
