/**
 * Python's notions of text and rounding. Published scores were computed in Python, whose white space, digits, words
 * and `round` differ from JavaScript's; the metrics use these functions so that the numbers agree to the last bit.
 *
 * @module
 */

const SPACE =
  "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACES = new RegExp(`[${SPACE}]+`, "u");
const ALL_SPACES = new RegExp(`[${SPACE}]+`, "gu");
const OUTER_SPACES = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "gu");

/** Words between runs of white space, as `str.split()`. */
export function splitSpaces(text: string): string[] {
  return text.split(SPACES).filter((word) => word !== "");
}

/** The text without white space at both ends, as `str.strip()`. */
export function strip(text: string): string {
  return text.replace(OUTER_SPACES, "");
}

/** The text without any white space. */
export function removeSpaces(text: string): string {
  return text.replace(ALL_SPACES, "");
}

/** Maximal runs of decimal digits of any script, as `re.findall(r"\d+", text)`. */
export function digitRuns(text: string): string[] {
  return text.match(/\p{Nd}+/gu) ?? [];
}

/** How often each item occurs, in order of first appearance. */
export function countItems<T>(items: Iterable<T>): Map<T, number> {
  const counts = new Map<T, number>();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

/** Size of the multiset intersection. */
export function overlap<T>(a: Map<T, number>, b: Map<T, number>): number {
  let sum = 0;
  for (const [item, n] of a) sum += Math.min(n, b.get(item) ?? 0);
  return sum;
}

/** Nearest integer, exact halves to the even one, as `round(x)`. */
export function roundHalfEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Two decimals, as Python's `round(x, 2)`: decided on the exact decimal value of the double, and an exact tie goes to
 * the even hundredth. A tie needs an odd multiple of 1/8, since 200 x must be an odd integer.
 */
export function roundPython2(x: number): number {
  if (!Number.isFinite(x)) return x;
  const eighths = 8 * x;
  if (!Number.isInteger(eighths) || eighths % 2 === 0) {
    return Number(x.toFixed(2));
  }
  return roundHalfEven(100 * x) / 100;
}

/** Two decimals, as NumPy's `round`: scaled, rounded half to even, scaled back; differs from Python near ties. */
export function roundNumpy2(x: number): number {
  return Number.isFinite(x) ? roundHalfEven(100 * x) / 100 : x;
}

/** Sum in NumPy's order (eight running sums, blocks of 128, halves above), which fixes the last bits of a mean. */
export function sumNumpy(values: readonly number[]): number {
  const n = values.length;
  if (n > 128) {
    const half = Math.floor(n / 2) - (Math.floor(n / 2) % 8);
    return sumNumpy(values.slice(0, half)) + sumNumpy(values.slice(half));
  }
  const at = (i: number): number => values[i] ?? 0;
  if (n < 8) return values.reduce((sum, value) => sum + value, 0);
  const r = [0, 1, 2, 3, 4, 5, 6, 7].map(at);
  const whole = n - (n % 8);
  for (let i = 8; i < whole; i++) r[i % 8] = (r[i % 8] ?? 0) + at(i);
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = r;
  let sum = ((a + b) + (c + d)) + ((e + f) + (g + h));
  for (let i = whole; i < n; i++) sum += at(i);
  return sum;
}
