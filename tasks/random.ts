/**
 * Seeded randomness for tasks.
 *
 * A generator is made from a list of keys (seed, task, index ...), so every example has a stream of its own: example i
 * is the same whether or not the examples before it were generated.
 *
 * @module
 */

/** A key of a stream. */
export type RandomKey = string | number;

/** Multiplies, rotates and folds one character code or number into a 32-bit state. */
function fold(state: number, value: number): number {
  let x = Math.imul(state ^ value, 0x9e3779b1);
  x ^= x >>> 15;
  x = Math.imul(x, 0x85ebca77);
  return (x ^ (x >>> 13)) >>> 0;
}

/**
 * A small counter-based generator of 32-bit words with the helpers that tasks need.
 *
 * Three words of state are mixed by add, rotate and xor, and a counter guarantees a period of at least 2^32. It is meant
 * for test data, not for secrets.
 *
 * @example
 * ```ts
 * import { Random } from "./random.ts";
 * const random = new Random(42, "niah_single_1", 0);
 * const again = new Random(42, "niah_single_1", 0);
 * if (random.below(1000) !== again.below(1000)) throw new Error("not deterministic");
 * ```
 */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #count = 1;

  /** Makes the stream of the given keys; `1` and `"1"` are different keys. */
  constructor(...keys: RandomKey[]) {
    const words = [0x243f6a88, 0x85a308d3, 0x13198a2e];
    for (const key of keys) {
      const text = `${typeof key === "number" ? "n" : "s"}${key};`;
      for (let i = 0; i < text.length; i++) {
        const code = text.charCodeAt(i);
        for (let w = 0; w < 3; w++) {
          words[w] = fold((words[w] ?? 0) + w, code);
        }
      }
    }
    [this.#a, this.#b, this.#c] = words as [number, number, number];
    for (let i = 0; i < 12; i++) this.next();
  }

  /** Next 32-bit word, 0 to 2^32 - 1. */
  next(): number {
    const sum = (this.#a + this.#b + this.#count) | 0;
    this.#count = (this.#count + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum | 0;
    return sum >>> 0;
  }

  /** Uniform number in [0, 1). */
  float(): number {
    return this.next() / 0x100000000;
  }

  /**
   * Uniform integer in [0, bound).
   *
   * @throws {RangeError} If `bound` is not an integer from 1 to 2^32.
   */
  below(bound: number): number {
    if (!Number.isInteger(bound) || bound < 1 || bound > 0x100000000) {
      throw new RangeError(
        `Cannot draw below a bound as it must be an integer from 1 to 2^32: bound is ${bound}`,
      );
    }
    const limit = 0x100000000 - 0x100000000 % bound;
    for (;;) {
      const word = this.next();
      if (word < limit) return word % bound;
    }
  }

  /** Uniform integer in [low, high], both ends included. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  /** One element of a list. */
  choice<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }

  /** A shuffled copy. */
  shuffle<T>(list: readonly T[]): T[] {
    const out = list.slice();
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j] as T, out[i] as T];
    }
    return out;
  }

  /**
   * `count` distinct positions of `0 ... size - 1`, in random order.
   *
   * @throws {RangeError} If more are asked for than there are.
   */
  distinct(count: number, size: number): number[] {
    if (count > size) {
      throw new RangeError(
        `Cannot draw distinct numbers as count must be at most size: count is ${count}, size is ${size}`,
      );
    }
    const seen = new Set<number>();
    // Floyd's scheme: one draw per element, whatever the size.
    for (let top = size - count; top < size; top++) {
      const drawn = this.below(top + 1);
      seen.add(seen.has(drawn) ? top : drawn);
    }
    return this.shuffle([...seen]);
  }

  /** `count` distinct elements of a list, in random order. */
  sample<T>(list: readonly T[], count: number): T[] {
    return this.distinct(count, list.length).map((i) => list[i] as T);
  }
}
