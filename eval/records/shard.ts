/**
 * Sharing work between processes without locks: a process owns the examples whose hash falls to its shard.
 *
 * @module
 */

/** One of `count` processes that share a results folder; `index` runs from 1. */
export interface Shard {
  /** Which one, from 1. */
  index: number;
  /** Of how many. */
  count: number;
}

/** The only process. */
export const WHOLE: Readonly<Shard> = { index: 1, count: 1 };

/**
 * Reads `i/n`.
 *
 * @throws SyntaxError unless 1 <= i <= n.
 */
export function parseShard(text: string): Shard {
  const [, i, n] = /^(\d{1,6})\/(\d{1,6})$/.exec(text) ?? [];
  const shard = { index: Number(i), count: Number(n) };
  if (shard.index >= 1 && shard.index <= shard.count) return shard;
  throw new SyntaxError(
    `Cannot read shard as it must be i/n with 1 <= i <= n: shard is "${text}"`,
  );
}

/** The shard as `i/n`. */
export function formatShard(shard: Shard): string {
  return `${shard.index}/${shard.count}`;
}

/**
 * Whether an example belongs to the shard.
 *
 * Examples are dealt, not single records, because all configurations of an example share one prefill. Every hash
 * belongs to exactly one shard of each count.
 *
 * @param shard This process.
 * @param exampleHash Hexadecimal content hash of the example.
 */
export function claims(shard: Shard, exampleHash: string): boolean {
  const prefix = Number.parseInt(exampleHash.slice(0, 12), 16);
  if (Number.isNaN(prefix)) {
    throw new TypeError(
      `Cannot deal example as its hash must be hexadecimal: hash is "${exampleHash}"`,
    );
  }
  return prefix % shard.count === shard.index - 1;
}
