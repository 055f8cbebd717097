/**
 * LongBench's code similarity: the first line of code of a prediction against the reference line.
 *
 * The score depends on which optional library the reference ran with, and both kinds of numbers are published. With
 * python-Levenshtein (listed among KVCache-Factory's requirements) it is the insert-delete similarity; without it
 * (LongBench's own requirements) it is the ratio of Python's difflib.
 *
 * @module
 */
import { countItems, roundHalfEven } from "./_python_text.ts";

/** Which similarity of two lines is meant. */
export type LineSimilarity = "indel" | "difflib";

/** First line without a backtick, `#` or `//`, after leading newlines; empty when there is none. */
export function firstCodeLine(text: string): string {
  const lines = text.replace(/^\n+/, "").split("\n");
  return lines.find((line) => !/`|#|\/\//.test(line)) ?? "";
}

/** Twice the longest common subsequence over the sum of lengths. */
function indelRatio(a: string[], b: string[]): number {
  let above = new Uint32Array(b.length + 1);
  for (const char of a) {
    const row = new Uint32Array(b.length + 1);
    for (let j = 1; j <= b.length; j++) {
      row[j] = char === b[j - 1]
        ? (above[j - 1] ?? 0) + 1
        : Math.max(above[j] ?? 0, row[j - 1] ?? 0);
    }
    above = row;
  }
  return (2 * (above[b.length] ?? 0)) / (a.length + b.length);
}

/** Positions of each character of `b`; characters that are frequent in a long text are left out, as difflib does. */
function positions(b: string[]): Map<string, number[]> {
  const places = new Map<string, number[]>();
  const counts = countItems(b);
  const most = b.length >= 200 ? Math.floor(b.length / 100) + 1 : Infinity;
  for (const [j, char] of b.entries()) {
    if ((counts.get(char) ?? 0) > most) continue;
    const list = places.get(char);
    if (list === undefined) places.set(char, [j]);
    else list.push(j);
  }
  return places;
}

/** Twice the summed size of matching blocks over the sum of lengths, as `difflib.SequenceMatcher(None, a, b).ratio()`. */
function difflibRatio(a: string[], b: string[]): number {
  const places = positions(b);
  const ranges: [number, number, number, number][] = [
    [0, a.length, 0, b.length],
  ];
  let matched = 0;
  for (let range = ranges.pop(); range !== undefined; range = ranges.pop()) {
    const [aStart, aEnd, bStart, bEnd] = range;
    let [i, j, size] = [aStart, bStart, 0];
    let runs = new Map<number, number>();
    for (let x = aStart; x < aEnd; x++) {
      const next = new Map<number, number>();
      for (const y of places.get(a[x] ?? "") ?? []) {
        if (y < bStart || y >= bEnd) continue;
        const run = (runs.get(y - 1) ?? 0) + 1;
        next.set(y, run);
        if (run > size) [i, j, size] = [x - run + 1, y - run + 1, run];
      }
      runs = next;
    }
    while (i > aStart && j > bStart && a[i - 1] === b[j - 1]) {
      i--;
      j--;
      size++;
    }
    while (i + size < aEnd && j + size < bEnd && a[i + size] === b[j + size]) {
      size++;
    }
    if (size === 0) continue;
    matched += size;
    ranges.push([aStart, i, bStart, j], [i + size, aEnd, j + size, bEnd]);
  }
  return (2 * matched) / (a.length + b.length);
}

/** fuzzywuzzy's `ratio` divided by 100: the similarity in whole hundredths. */
export function lineSimilarity(
  a: string,
  b: string,
  similarity: LineSimilarity = "indel",
): number {
  if (a === b) return 1;
  if (a === "" || b === "") return 0;
  const ratio = similarity === "indel" ? indelRatio : difflibRatio;
  return roundHalfEven(100 * ratio([...a], [...b])) / 100;
}

/** LongBench's `code_sim_score` for one answer. */
export function codeSim(
  prediction: string,
  answer: string,
  similarity: LineSimilarity = "indel",
): number {
  return lineSimilarity(firstCodeLine(prediction), answer, similarity);
}
