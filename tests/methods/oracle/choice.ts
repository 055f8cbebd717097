/**
 * Which rows a head must keep, and whether it does: near ties may fall either way, equal scores go to the lower position.
 *
 * @module
 */
import type { Row } from "./layer.ts";

/** What one stored head must keep. */
export interface Choice {
  /** Positions that are always kept. */
  fixed: number[];
  /** Positions that compete. */
  candidates: number[];
  /** Scores by position, the largest are kept. */
  scores: Row;
  /** How many candidates are kept: the least and the most that rounding allows. */
  count: [least: number, most: number];
}

/** Scores that differ by less, relative to the larger, may be in either order: the library sums in single precision. */
export const NEAR = 2e-5;

/** Positions `0 … length - 1`. */
export const upTo = (length: number): number[] =>
  Array.from({ length: Math.max(0, length) }, (_, i) => i);

/** A head that keeps given positions, whatever the scores. */
export const everything = (positions: number[]): Choice => ({
  fixed: positions,
  candidates: [],
  scores: new Float64Array(),
  count: [0, 0],
});

/** Positions by falling score, the lower position first among equal scores. */
export const ranked = (positions: number[], scores: Row): number[] =>
  [...positions].sort((a, b) => scores[b]! - scores[a]! || a - b);

/** The positions that are kept where no two scores are near. */
export const keptBy = ({ fixed, candidates, scores, count }: Choice) =>
  [...fixed, ...ranked(candidates, scores).slice(0, count[1])]
    .sort((a, b) => a - b);

/**
 * What is wrong with the positions that a head kept, or nothing.
 * @param lowFirst of equal scores, lower positions must be kept: our rule, not the reference's
 */
export function wrong(
  actual: number[],
  choice: Choice,
  lowFirst = true,
): string | undefined {
  const { fixed, candidates, scores, count: [least, most] } = choice;
  const kept = new Set(actual);
  if (kept.size !== actual.length) return "a position is kept twice";
  const missing = fixed.filter((position) => !kept.has(position));
  if (missing.length > 0) return `protected ${missing} are gone`;
  const chosen = actual.length - fixed.length;
  if (chosen < least || chosen > most) {
    return `${chosen} candidates are kept, not ${least} to ${most}`;
  }
  const order = ranked(candidates, scores);
  const stray = order.filter((p) => kept.has(p)).length;
  if (stray !== chosen) return "a position is no candidate";
  if (chosen === 0 || chosen === order.length) return;
  const cut = scores[order[chosen - 1]!]!;
  const room = NEAR * Math.abs(cut);
  for (const position of candidates) {
    const score = scores[position]!;
    if (kept.has(position) ? score < cut - room : score > cut + room) {
      return `${position} of score ${score} is ${
        kept.has(position) ? "kept" : "dropped"
      } though the cut is ${cut}`;
    }
  }
  if (!lowFirst) return;
  // Of exactly equal scores at the cut, no lower position may be dropped while a higher one is kept.
  for (const low of order) {
    if (kept.has(low) || Math.abs(scores[low]! - cut) > room) continue;
    const high = order.find((p) =>
      p > low && kept.has(p) && scores[p] === scores[low]
    );
    if (high !== undefined) {
      return `${high} is kept instead of ${low} at equal scores`;
    }
  }
}
