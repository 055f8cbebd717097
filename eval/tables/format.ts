/**
 * Numbers as text, the same in all reports.
 *
 * @module
 */

/** What stands in a table where there is no number. */
export const MISSING = "–";

/**
 * A number with a fixed count of decimals; a dash for `null` and what is not finite.
 *
 * @param value The number.
 * @param digits Decimals. Default: 2.
 */
export function formatNumber(value: number | null, digits = 2): string {
  if (value === null || !Number.isFinite(value)) return MISSING;
  const text = value.toFixed(digits);
  // A rounded zero has no sign.
  return /^-0(\.0*)?$/.test(text) ? text.slice(1) : text;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes with three significant digits and a binary unit: 4096 becomes `4.00 KiB`. */
export function formatBytes(bytes: number | null): string {
  if (bytes === null || !Number.isFinite(bytes)) return MISSING;
  let value = bytes;
  let unit = 0;
  // 999.5 would be rounded to four digits, so the next unit begins there.
  while (Math.abs(value) >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  if (unit === 0) return `${Math.round(value)} B`;
  const size = Math.abs(value);
  const digits = size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}
