/**
 * Rounding as the reference does it.
 *
 * @module
 */

/** Rounds to the nearest integer, ties to the even one. */
export function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + low % 2 : Math.round(x);
}

/**
 * Floor division of doubles through the exact remainder, as Python's `//` does it: `floor(a / b)` of the rounded quotient
 * may be one more. For `a >= 0` and `b > 0`.
 */
export function floorDivide(a: number, b: number): number {
  const quotient = (a - a % b) / b;
  const low = Math.floor(quotient);
  return quotient - low > 0.5 ? low + 1 : low;
}
