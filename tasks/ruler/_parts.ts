/**
 * What the RULER generators share: the draft of an example, limits, random names and values.
 *
 * @module
 */
import type { Random } from "../random.ts";
import type { Json } from "../types.ts";
import { splitSentences } from "../text/haystack.ts";
import { ADJECTIVES, NOUNS } from "../text/words.ts";

/** A question about a context, before it becomes an example. */
export interface Question {
  /** What follows the context in the prompt. */
  question: string;
  /** How the answer begins. */
  answerPrefix: string;
  /** Accepted answers. */
  answers: string[];
  /** What a model that knows the answer says after the prefix; it begins with a space. */
  target: string;
}

/** A prompt with its question. */
export interface Draft extends Question {
  /** Context and question. */
  prompt: string;
  /** Facts for the example's `meta`. */
  meta: { [key: string]: Json };
}

/**
 * New tokens that a prompt of a given total length leaves room for: the benchmark's own number, and at most a quarter of
 * very short lengths.
 */
export function newTokens(official: number, length: number): number {
  return Math.min(official, Math.floor(length / 4));
}

/** Kinds of keys and values. */
export type ValueType = "words" | "numbers" | "uuids";

/** Singular of a value type. */
export const KIND: { [type in ValueType]: string } = {
  words: "word",
  numbers: "number",
  uuids: "uuid",
};

/** An adjective and a noun with a hyphen. */
export function randomPair(random: Random): string {
  return `${random.choice(ADJECTIVES)}-${random.choice(NOUNS)}`;
}

/** A version-4 UUID. */
export function randomUuid(random: Random): string {
  const hex = (): string => random.next().toString(16).padStart(8, "0");
  const a = hex(), b = hex(), c = hex(), d = hex();
  const variant = "89ab"[random.below(4)];
  return `${a}-${b.slice(0, 4)}-4${b.slice(5)}-${variant}${c.slice(1, 4)}-${
    c.slice(4)
  }${d}`;
}

/** A random key or value; numbers have seven digits. */
export function randomValue(random: Random, type: ValueType): string {
  switch (type) {
    case "words":
      return randomPair(random);
    case "numbers":
      return String(random.between(1_000_000, 9_999_999));
    case "uuids":
      return randomUuid(random);
  }
}

/** A random value that is not in the set; it is added. */
export function freshValue(
  random: Random,
  type: ValueType,
  used: Set<string>,
): string {
  for (;;) {
    const value = randomValue(random, type);
    if (!used.has(value)) {
      used.add(value);
      return value;
    }
  }
}

/** `count` random letters of an alphabet. */
export function randomLetters(
  random: Random,
  count: number,
  alphabet: string,
): string {
  let out = "";
  for (let i = 0; i < count; i++) {
    out += alphabet[random.below(alphabet.length)];
  }
  return out;
}

/** The beginnings of a paragraph that end with a sentence, longest first, without the paragraph itself. */
export function beginnings(paragraph: string): string[] {
  const sentences = splitSentences(paragraph);
  return sentences.slice(1)
    .map((_, i) => sentences.slice(0, sentences.length - 1 - i).join(" "));
}

/** Joins with commas and "and" before the last. */
export function joinAnd(items: readonly string[]): string {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;
}
