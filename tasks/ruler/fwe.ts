/**
 * Frequent words: which three coded words come up most often in a text whose word frequencies follow Zipf's law.
 *
 * @module
 */
import { Random } from "../random.ts";
import type { TextCodec } from "../types.ts";
import { fillSlots, fitUnits, TokenCounter } from "../_sizing.ts";
import { type Draft, randomLetters } from "./_parts.ts";
import type { ResolvedWording } from "./_wording.ts";

/** New tokens of the official benchmark. */
export const FWE_NEW_TOKENS = 50;

const LETTERS = "abcdefghijklmnopqrstuvwxyz";
const WORD_LETTERS = 6;
/** Ranks that are asked for; rank 1 is the dots. */
const LAST_ASKED = 4;

/** Riemann's zeta for `alpha` above 1: a sum and the integral of its tail. */
function zeta(alpha: number): number {
  const terms = 1000;
  let sum = 0;
  for (let k = 1; k <= terms; k++) sum += k ** -alpha;
  return sum + (terms + 0.5) ** (1 - alpha) / (alpha - 1);
}

/**
 * Makes one frequent-words example.
 *
 * @throws {RangeError} If the fewest words have more tokens than the limit.
 */
export function makeFwe(
  random: Random,
  codec: TextCodec,
  { wording, limit, alpha }: {
    wording: ResolvedWording;
    limit: number;
    alpha: number;
  },
): Draft {
  const order = random.next();
  const size = Math.max(LAST_ASKED + 1, Math.floor(limit / 50));
  const seen = new Set<string>();
  while (seen.size < size) {
    seen.add(randomLetters(random, WORD_LETTERS, LETTERS));
  }
  const words = ["...", ...[...seen].slice(1)];
  const scale = zeta(alpha);
  const countsOf = (total: number): number[] => {
    const counts = words.map((_, i) =>
      Math.floor(total * (i + 1) ** -alpha / scale)
    );
    // Exactly three words are the most frequent: no later rank draws level with the fourth.
    const cap = (counts[LAST_ASKED - 1] as number) - 1;
    return counts.map((n, i) => i < LAST_ASKED ? n : Math.min(n, cap));
  };
  const textOf = (total: number): string =>
    new Random(order, total).shuffle(
      countsOf(total).flatMap((n, i) =>
        Array<string>(n).fill(words[i] as string)
      ),
    ).join(" ");
  const counter = new TokenCounter(codec);
  const tokens = words.map((word) => counter.count(` ${word}`));
  const fixed = counter.count(
    fillSlots(wording.template, { context: "" }) + wording.answerPrefix,
  );
  const promptOf = (total: number): string =>
    fillSlots(wording.template, { context: textOf(total) });
  const fit = fitUnits(codec, {
    limit,
    min: Math.ceil(scale * LAST_ASKED ** alpha),
    max: 3 * limit,
    estimate: (total) =>
      countsOf(total).reduce(
        (sum, n, i) => sum + n * (tokens[i] as number),
        fixed,
      ),
    build: (total) => promptOf(total) + wording.answerPrefix,
  });
  const answers = words.slice(1, LAST_ASKED);
  return {
    prompt: promptOf(fit.count),
    question: "",
    answerPrefix: wording.answerPrefix,
    answers,
    target: ` ${answers.join(", ")}`,
    meta: { promptTokens: fit.tokens, units: fit.count, vocabulary: size },
  };
}
