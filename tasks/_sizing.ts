/**
 * Sizing of prompts: how many units fit in a number of tokens.
 *
 * @module
 */
import type { TextCodec } from "./types.ts";

/** What {@linkcode fitUnits} needs to know. */
export interface FitOptions {
  /** Tokens that the built text may have at most. */
  limit: number;
  /** Fewest units with which the text makes sense. */
  min: number;
  /** Most units there are. */
  max: number;
  /** Estimated tokens of the first `count` units and all around them. */
  estimate(count: number): number;
  /** The text with `count` units. */
  build(count: number): string;
}

/** The size found. */
export interface Fit {
  /** Units. */
  count: number;
  /** Tokens of the built text, exactly. */
  tokens: number;
  /** The built text. */
  text: string;
}

/**
 * Finds the largest number of units whose text fits. The estimate proposes, the codec decides: where the estimate is
 * right, the text is encoded once or twice.
 *
 * @throws {RangeError} If even the fewest units do not fit.
 */
export function fitUnits(
  codec: TextCodec,
  { limit, min, max, estimate, build }: FitOptions,
): Fit {
  /** Largest count in [low, high] whose estimate plus `shift` fits. */
  const propose = (low: number, high: number, shift: number): number => {
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (estimate(middle) + shift <= limit) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  let best: Fit | null = null;
  let low = min;
  let high = max;
  let count = propose(low, high, 0);
  for (let tries = 0; low <= high; tries++) {
    const text = build(count);
    const tokens = codec.encode(text).length;
    if (tokens <= limit) {
      best = { count, tokens, text };
      low = count + 1;
    } else {
      high = count - 1;
    }
    if (low > high) break;
    // The next unit's estimated size decides whether one more can fit at all.
    const shift = tokens - estimate(count);
    if (
      best !== null && best.count === count && estimate(low) + shift > limit
    ) {
      break;
    }
    count = tries < 6
      ? propose(low, high, shift)
      : best === null
      ? Math.floor((low + high) / 2)
      : low;
    if (tries > 40 && best !== null) break;
  }
  if (best === null) {
    throw new RangeError(
      `Cannot build the prompt as its smallest form must fit in ${limit} tokens: it has ${
        codec.encode(build(min)).length
      }`,
    );
  }
  return best;
}

/**
 * Fills what is left after the last whole unit with the largest part of a unit that fits.
 *
 * @param fit What {@linkcode fitUnits} found.
 * @param parts Parts of a unit, largest first.
 * @param build The text with the units that were found and a part.
 */
export function fillRest(
  codec: TextCodec,
  fit: Fit,
  { limit, parts, build }: {
    limit: number;
    parts: readonly string[];
    build(part: string): string;
  },
): Fit {
  for (const part of parts) {
    const text = build(part);
    const tokens = codec.encode(text).length;
    if (tokens <= limit) return { count: fit.count, tokens, text };
  }
  return fit;
}

/** Counts tokens of strings and remembers them; for units that repeat. */
export class TokenCounter {
  #known = new Map<string, number>();
  #codec: TextCodec;

  /** Counts with the given codec. */
  constructor(codec: TextCodec) {
    this.#codec = codec;
  }

  /** Tokens of a text. */
  count(text: string): number {
    let tokens = this.#known.get(text);
    if (tokens === undefined) {
      tokens = this.#codec.encode(text).length;
      if (this.#known.size < 4096) this.#known.set(text, tokens);
    }
    return tokens;
  }
}

/** Replaces `{name}` slots in one pass; a slot inside a value stays as it is. */
export function fillSlots(
  template: string,
  slots: { [name: string]: string | number },
): string {
  return template.replace(/\{(\w+)\}/g, (whole, name: string) => {
    const value = slots[name];
    return value === undefined ? whole : String(value);
  });
}
