/**
 * Checks of arguments before a native call.
 *
 * @module
 */

/** Throws unless `value` is an integer from `min` to `max`. */
export function checkInteger(
  action: string,
  name: string,
  value: number,
  min = 0,
  max = 0xffffffff,
): number {
  if (!Number.isInteger(value) || value < min || value > max) {
    const range = max === 0xffffffff
      ? `an integer >= ${min}`
      : `an integer from ${min} to ${max}`;
    throw new RangeError(
      `Cannot ${action} as ${name} must be ${range}: ${name} is ${value}`,
    );
  }
  return value;
}

/** Index of `value` in `values`; throws when it is not there. */
export function checkChoice<T extends string>(
  action: string,
  name: string,
  value: T,
  values: readonly T[],
): number {
  const index = values.indexOf(value);
  if (index < 0) {
    throw new TypeError(
      `Cannot ${action} as ${name} must be one of ${
        values.map((v) => `"${v}"`).join(", ")
      }: ${name} is "${value}"`,
    );
  }
  return index;
}

/** Throws unless an array has the length that the shapes ask for. */
export function checkLength(
  action: string,
  name: string,
  values: ArrayLike<unknown>,
  length: number,
): void {
  if (values.length !== length) {
    throw new RangeError(
      `Cannot ${action} as ${name} must have ${length} elements: it has ${values.length}`,
    );
  }
}

/** Copies integers into the form that C reads, checking each. */
export function checkIntegers(
  action: string,
  name: string,
  values: ArrayLike<number>,
  max = 0xffffffff,
): Uint32Array<ArrayBuffer> {
  const out = new Uint32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    out[i] = checkInteger(action, `${name}[${i}]`, values[i] ?? NaN, 0, max);
  }
  return out;
}
