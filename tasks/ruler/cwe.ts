/**
 * Common words: which ten words of a long numbered list come up most often.
 *
 * @module
 */
import { Random } from "../random.ts";
import type { TextCodec } from "../types.ts";
import { ADJECTIVES, NOUNS, VERBS } from "../text/words.ts";
import { fillSlots, fitUnits, TokenCounter } from "../_sizing.ts";
import type { Draft } from "./_parts.ts";
import type { ResolvedWording } from "./_wording.ts";

/** New tokens of the official benchmark. */
export const CWE_NEW_TOKENS = 120;

/** Common words asked for. */
const COMMON = 10;

/** How often words come up, and the worked example. */
interface Frequencies {
  common: number;
  uncommon: number;
  shot: { words: number; common: number; uncommon: number } | null;
}

/** Frequencies of a prompt length; those of 1024 tokens and more are the benchmark's. */
function frequencies(length: number): Frequencies {
  if (length >= 4096) {
    return {
      common: 30,
      uncommon: 3,
      shot: { words: 40, common: 10, uncommon: 3 },
    };
  }
  if (length >= 1024) {
    return {
      common: 6,
      uncommon: 1,
      shot: { words: 20, common: 3, uncommon: 1 },
    };
  }
  return { common: length >= 512 ? 6 : 3, uncommon: 1, shot: null };
}

const VOCABULARY: readonly string[] = [...NOUNS, ...ADJECTIVES, ...VERBS];

/** Distinct words in random order, as many as wanted: the lists first, then adjective and noun written as one word. */
class WordSource {
  #random: Random;
  #words: string[];
  #seen: Set<string>;

  constructor(random: Random) {
    this.#random = random;
    this.#words = random.shuffle(VOCABULARY);
    this.#seen = new Set(this.#words);
  }

  /** Word number `i`. */
  at(i: number): string {
    while (this.#words.length <= i) {
      const word = this.#random.choice(ADJECTIVES) +
        this.#random.choice(NOUNS);
      if (this.#seen.has(word)) continue;
      this.#seen.add(word);
      this.#words.push(word);
    }
    return this.#words[i] as string;
  }
}

/** The list in its final order. */
function spread(
  words: readonly string[],
  common: number,
  uncommon: number,
  random: Random,
): string[] {
  return random.shuffle(
    words.flatMap((word, i) =>
      Array<string>(i < COMMON ? common : uncommon).fill(word)
    ),
  );
}

function numbered(words: readonly string[]): string {
  return words.map((word, i) => `${i + 1}. ${word}`).join(" ");
}

/** The common words in the order in which they first come up. */
function ordered(list: readonly string[], common: readonly string[]): string[] {
  const wanted = new Set(common);
  return [...new Set(list)].filter((word) => wanted.has(word));
}

/**
 * Makes one common-words example.
 *
 * @throws {RangeError} If the ten common words alone have more tokens than the limit.
 */
export function makeCwe(
  random: Random,
  codec: TextCodec,
  { wording, limit, length }: {
    wording: ResolvedWording;
    limit: number;
    length: number;
  },
): Draft {
  const { common, uncommon, shot } = frequencies(length);
  const order = random.next();
  const source = new WordSource(random);
  const counter = new TokenCounter(codec);
  let before = "";
  if (shot !== null) {
    const words = Array.from({ length: shot.words }, (_, i) => source.at(i));
    const list = spread(words, shot.common, shot.uncommon, random);
    before = fillSlots(wording.template, { context: numbered(list) }) +
      wording.answerPrefix + " " +
      numbered(ordered(list, words.slice(0, COMMON))) + "\n\n";
  }
  const offset = shot?.words ?? 0;
  const listOf = (count: number): string[] =>
    spread(
      Array.from({ length: count }, (_, i) => source.at(offset + i)),
      common,
      uncommon,
      new Random(order, count),
    );
  const promptOf = (count: number): string =>
    before +
    fillSlots(wording.template, { context: numbered(listOf(count)) });
  const numberTokens = [0];
  const wordTokens = [0];
  const fixed = counter.count(
    before + fillSlots(wording.template, { context: "" }) +
      wording.answerPrefix,
  );
  const estimate = (count: number): number => {
    while (wordTokens.length <= count) {
      const i = wordTokens.length - 1;
      wordTokens.push(
        (wordTokens[i] as number) +
          (i < COMMON ? common : uncommon) *
            counter.count(` ${source.at(offset + i)}`),
      );
    }
    const items = COMMON * common + Math.max(0, count - COMMON) * uncommon;
    while (numberTokens.length <= items) {
      const digits = String(numberTokens.length).length;
      numberTokens.push(
        (numberTokens[numberTokens.length - 1] as number) +
          counter.count(` ${"7".repeat(digits)}.`),
      );
    }
    return fixed + (wordTokens[count] as number) +
      (numberTokens[items] as number);
  };
  let max = COMMON;
  while (estimate(max) <= limit) max++;
  const fit = fitUnits(codec, {
    limit,
    min: COMMON,
    max: max + 8,
    estimate,
    build: (count) => promptOf(count) + wording.answerPrefix,
  });
  const answers = ordered(
    listOf(fit.count),
    Array.from({ length: COMMON }, (_, i) => source.at(offset + i)),
  );
  return {
    prompt: promptOf(fit.count),
    question: "",
    answerPrefix: wording.answerPrefix,
    answers,
    target: ` ${numbered(answers)}`,
    meta: {
      promptTokens: fit.tokens,
      units: fit.count,
      common,
      uncommon,
      shots: shot === null ? 0 : 1,
    },
  };
}
