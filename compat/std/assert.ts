// deno-lint-ignore-file no-explicit-any -- any constructor may be asked for, as in the real package
/**
 * Stand-in for `@std/assert` where JSR cannot be reached, over `node:assert`. It offers the functions that the tests
 * use, with the real package's signatures. Map the import to `jsr:@std/assert@^1` to use the real package.
 *
 * @module
 */
import nodeAssert, { AssertionError } from "node:assert";
export { AssertionError };

function failure(msg: string | undefined): Error | undefined {
  return msg === undefined ? undefined : new AssertionError({ message: msg });
}

/** Throws unless `condition` is truthy. */
export function assert(condition: unknown, msg?: string): asserts condition {
  if (!condition) {
    throw new AssertionError({ message: msg ?? "Assertion failed" });
  }
}

/** Throws unless both values are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.deepStrictEqual(actual, expected, failure(msg));
}

/** Throws if both values are deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.notDeepStrictEqual(actual, expected, failure(msg));
}

/** Throws unless both values are the same by `Object.is`. */
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  msg?: string,
): asserts actual is T {
  nodeAssert.strictEqual(actual, expected, failure(msg));
}

/** Throws unless `actual` is within `tolerance` of `expected` (default: 1e-7 relative). */
export function assertAlmostEquals(
  actual: number,
  expected: number,
  tolerance?: number,
  msg?: string,
): void {
  if (Object.is(actual, expected)) return;
  const delta = Math.abs(expected - actual);
  const bound = tolerance ??
    (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  if (delta <= bound) return;
  throw new AssertionError({
    message: msg ?? `Expected ${expected} within ${bound}: actual is ${actual}`,
  });
}

/** Throws unless `actual` is greater than `expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual > expected)) {
    throw new AssertionError({
      message: msg ?? `Expected ${actual} > ${expected}`,
    });
  }
}

/** Throws unless `actual` is at most `expected`. */
export function assertLessOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (!(actual <= expected)) {
    throw new AssertionError({
      message: msg ?? `Expected ${actual} <= ${expected}`,
    });
  }
}

/** Throws unless `actual` contains `expected`. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  if (!actual.includes(expected)) {
    throw new AssertionError({
      message: msg ?? `Expected to find "${expected}" in "${actual}"`,
    });
  }
}

/** Throws unless `actual` matches `expected`. */
export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  nodeAssert.match(actual, expected, failure(msg));
}

/** Throws unless `actual` is an instance of `expectedType`. */
export function assertInstanceOf<
  T extends abstract new (...args: any[]) => any,
>(
  actual: unknown,
  expectedType: T,
  msg?: string,
): asserts actual is InstanceType<T> {
  if (!(actual instanceof expectedType)) {
    throw new AssertionError({
      message: msg ??
        `Expected an instance of ${expectedType.name}: actual is ${actual}`,
    });
  }
}

function checkError(
  error: unknown,
  errorClass: (abstract new (...args: any[]) => unknown) | undefined,
  msgIncludes: string | undefined,
  msg: string | undefined,
): Error {
  if (!(error instanceof Error)) {
    throw new AssertionError({
      message: msg ?? "A non-Error object was thrown",
    });
  }
  if (errorClass && !(error instanceof errorClass)) {
    throw new AssertionError({
      message: msg ??
        `Expected ${errorClass.name}: ${error.constructor.name} was thrown: ${error.message}`,
    });
  }
  if (msgIncludes !== undefined && !error.message.includes(msgIncludes)) {
    throw new AssertionError({
      message: msg ??
        `Expected a message with "${msgIncludes}": it is "${error.message}"`,
    });
  }
  return error;
}

/** Throws unless `fn` throws (an error of the class, with the text in its message); returns the error. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  errorClass?: abstract new (...args: any[]) => E,
  msgIncludes?: string,
  msg?: string,
): E {
  try {
    fn();
  } catch (error) {
    return checkError(error, errorClass, msgIncludes, msg) as E;
  }
  throw new AssertionError({ message: msg ?? "Expected function to throw" });
}

/** Throws unless the promise of `fn` rejects (with an error of the class and the text in its message). */
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  errorClass?: abstract new (...args: any[]) => E,
  msgIncludes?: string,
  msg?: string,
): Promise<E> {
  try {
    await fn();
  } catch (error) {
    return checkError(error, errorClass, msgIncludes, msg) as E;
  }
  throw new AssertionError({ message: msg ?? "Expected function to reject" });
}
