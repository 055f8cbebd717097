/**
 * ROUGE-L as the Python package `rouge` 1.0.1 computes it and LongBench publishes it. This is not the ROUGE-L of other
 * packages: sentences end at every full stop, words are counted once, and the union of longest common subsequences
 * over all pairs of sentences is compared as a set.
 *
 * @module
 */
import { cutChinese } from "./chinese.ts";
import { splitSpaces } from "./_python_text.ts";

/** How deep the walk through a pair of sentences may go. */
export type RougeDepth = "unlimited" | "python";

/**
 * The package walks back recursively, so a long pair of sentences hits Python's default limit of 1000 frames, and
 * LongBench turns the error into a score of 0. Frames below the walk are the caller's; the exact number varies by some
 * twenty with the calling program.
 */
const PYTHON_FRAMES = 980;

/** Sentences as lists of words; a piece of white space alone is a sentence with one empty word. */
function sentences(text: string): string[][] {
  return text.split(".").filter((piece) => piece !== "").map((piece) => {
    const words = splitSpaces(piece);
    return words.length === 0 ? [""] : words;
  });
}

/**
 * Adds the words of one longest common subsequence of `gold` and `other` to `union`. Which one matters: ties in the
 * table lead towards the start of `other`.
 *
 * @returns The steps of the walk through the table.
 */
function addCommon(
  gold: number[],
  other: number[],
  union: Set<number>,
): number {
  const width = other.length + 1;
  const table = new Uint32Array((gold.length + 1) * width);
  for (let i = 1; i <= gold.length; i++) {
    for (let j = 1; j <= other.length; j++) {
      const above = table[(i - 1) * width + j] ?? 0;
      const left = table[i * width + j - 1] ?? 0;
      table[i * width + j] = gold[i - 1] === other[j - 1]
        ? (table[(i - 1) * width + j - 1] ?? 0) + 1
        : Math.max(above, left);
    }
  }
  let i = gold.length;
  let j = other.length;
  let steps = 0;
  for (; i > 0 && j > 0; steps++) {
    const word = gold[i - 1];
    if (word !== undefined && word === other[j - 1]) {
      union.add(word);
      i--;
      j--;
    } else if (
      (table[(i - 1) * width + j] ?? 0) > (table[i * width + j - 1] ?? 0)
    ) {
      i--;
    } else {
      j--;
    }
  }
  return steps;
}

/**
 * LongBench's `rouge_score` for one answer: the F measure of ROUGE-L. A perfect match scores 0.999999995, because the
 * package adds 1e-8 to the denominator.
 *
 * @param prediction Generated text.
 * @param answer Reference text.
 * @param depth `unlimited` gives every pair its value; `python` repeats the zeros that the recursion limit causes.
 */
export function rougeL(
  prediction: string,
  answer: string,
  depth: RougeDepth = "unlimited",
): number {
  const ids = new Map<string, number>();
  const encode = (words: string[]) =>
    words.map((word) => {
      const id = ids.get(word) ?? ids.size;
      ids.set(word, id);
      return id;
    });
  const gold = sentences(answer).map(encode);
  const other = sentences(prediction).map(encode);
  if (gold.length === 0 || other.length === 0) return 0;
  const union = new Set<number>();
  for (const g of gold) {
    for (const o of other) {
      const steps = addCommon(g, o, union);
      if (depth === "python" && steps > PYTHON_FRAMES) return 0;
    }
  }
  const recall = union.size / new Set(gold.flat()).size;
  const precision = union.size / new Set(other.flat()).size;
  return 2 * ((precision * recall) / (precision + recall + 1e-8));
}

/** LongBench's `rouge_zh_score` for one answer: {@linkcode rougeL} over segmented text. */
export function rougeLChinese(
  prediction: string,
  answer: string,
  depth: RougeDepth = "unlimited",
): number {
  const spaced = (text: string) => cutChinese(text).join(" ");
  return rougeL(spaced(prediction), spaced(answer), depth);
}
