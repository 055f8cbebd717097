/**
 * Needles in a haystack: the eight niah tasks of RULER.
 *
 * @module
 */
import type { Random } from "../random.ts";
import type { TextCodec } from "../types.ts";
import { haystackSentence } from "../text/haystack.ts";
import { fillRest, fillSlots, fitUnits } from "../_sizing.ts";
import {
  beginnings,
  type Draft,
  freshValue,
  joinAnd,
  KIND,
  type Question,
  type ValueType,
} from "./_parts.ts";
import type { ResolvedWording } from "./_wording.ts";

/** What a niah task varies. */
export interface NiahConfig {
  /** What the needles hide in: a repeated paragraph, sentences, or other needles. */
  haystack: "noise" | "essay" | "needle";
  /** Kind of keys. */
  keyType: ValueType;
  /** Kind of values. */
  valueType: ValueType;
  /** Keys with needles; raised to `queries`. */
  keys: number;
  /** Needles per key. */
  values: number;
  /** Keys asked for. */
  queries: number;
}

/** The eight tasks. */
export const NIAH_TASKS: { [name: string]: NiahConfig } = {
  "niah_single_1": config("noise", "words", "numbers"),
  "niah_single_2": config("essay", "words", "numbers"),
  "niah_single_3": config("essay", "words", "uuids"),
  "niah_multikey_1": config("essay", "words", "numbers", 4),
  "niah_multikey_2": config("needle", "words", "numbers"),
  "niah_multikey_3": config("needle", "uuids", "uuids"),
  "niah_multivalue": config("essay", "words", "numbers", 1, 4),
  "niah_multiquery": config("essay", "words", "numbers", 4, 1, 4),
};

function config(
  haystack: NiahConfig["haystack"],
  keyType: ValueType,
  valueType: ValueType,
  keys = 1,
  values = 1,
  queries = 1,
): NiahConfig {
  return { haystack, keyType, valueType, keys, values, queries };
}

/** New tokens of the official benchmark. */
export const NIAH_NEW_TOKENS = 128;

/** Needles may only stand at so many different depths of an essay, both ends included. */
const DEPTHS = 40;

/** A needle. */
interface Needle {
  key: string;
  value: string;
  text: string;
}

/** A haystack with its needles, ready to be asked about. */
export interface NiahContext {
  /** The text. */
  context: string;
  /** Keys that can be asked for: those of the needles in random order, then those of needles that serve as haystack. */
  keys: string[];
  /** Depth of the needles in percent of the haystack's units, in text order. */
  depths: number[];
  /** Units of the haystack. */
  units: number;
  /** Tokens of the whole prompt with the answer prefix of the question it was sized for. */
  tokens: number;
  /** The question that it was sized for. */
  first: Draft;
  /** Asks for keys; the answers are all their values. */
  ask(keys: readonly string[]): Question;
}

/** How a context is made. */
export interface NiahOptions {
  /** What to hide and where. */
  config: NiahConfig;
  /** Wording. */
  wording: ResolvedWording;
  /** Tokens of prompt and answer prefix at most. */
  limit: number;
  /** Sentences of the essay haystack; our own language where null. */
  sentences: readonly string[] | null;
}

/**
 * Makes a haystack with needles for a number of tokens.
 *
 * @throws {RangeError} If the needles and the question alone have more tokens than the limit.
 */
export function makeNiah(
  random: Random,
  codec: TextCodec,
  { config, wording, limit, sentences }: NiahOptions,
): NiahContext {
  const { keyType, valueType, values, queries } = config;
  const used = new Set<string>();
  const makeNeedle = (key: string): Needle => {
    const value = freshValue(random, valueType, used);
    return {
      key,
      value,
      text: fillSlots(wording.needle, { type: valueType, key, value }),
    };
  };
  const keys: string[] = [];
  const planned: Needle[] = [];
  for (let i = 0; i < Math.max(config.keys, queries); i++) {
    const key = freshValue(random, keyType, used);
    keys.push(key);
    for (let j = 0; j < values; j++) planned.push(makeNeedle(key));
  }
  const needles = random.shuffle(planned);
  const asked = random.sample(keys, queries);

  const distractors: Needle[] = [];

  const ask = (chosen: readonly string[]): Question => {
    const held = chosen.map((key) =>
      [...needles, ...distractors].filter((n) => n.key === key).map((n) =>
        n.value
      )
    );
    const one = held.flat().length === 1;
    const slots = {
      type: valueType,
      kind: KIND[valueType],
      // The name of the first slot in the official wording.
      "type_needle_v": one ? KIND[valueType] : valueType,
      query: joinAnd(chosen),
    };
    const template = one ? wording.templateOne : wording.template;
    const tail = template.slice(
      template.indexOf("{context}") + "{context}".length,
    );
    const target = chosen.length > 1
      ? ` ${
        chosen.map((key, i) => `${key} holds ${held[i]?.join(", ")}`).join(", ")
      }`
      : ` ${held[0]?.join(", ")}`;
    return {
      question: fillSlots(tail, slots),
      answerPrefix: fillSlots(
        one ? wording.answerPrefixOne : wording.answerPrefix,
        slots,
      ),
      answers: held.flat(),
      target,
    };
  };
  const first = ask(asked);
  const one = queries * values === 1;
  const template = one ? wording.templateOne : wording.template;
  const head = fillSlots(template.slice(0, template.indexOf("{context}")), {
    type: valueType,
    kind: KIND[valueType],
    "type_needle_v": one ? KIND[valueType] : valueType,
  });

  // Where the needles go, as a share of the haystack, so that the size can change while it is sought.
  const isEssay = config.haystack === "essay";
  const shares = isEssay
    ? random.distinct(Math.min(needles.length, DEPTHS), DEPTHS).map((d) =>
      Math.round(100 * d / (DEPTHS - 1)) / 100
    ).sort((a, b) => a - b)
    : needles.map(() => random.float()).sort((a, b) => a - b);
  while (shares.length < needles.length) shares.push(random.float());
  shares.sort((a, b) => a - b);
  const start = sentences === null ? 0 : random.below(sentences.length);

  const units: string[] = [];
  const unitTokens: number[] = [0];
  const joiner = isEssay ? " " : "\n";
  let noiseTokens = -1;
  const grow = (count: number): void => {
    while (units.length < count) {
      let unit: string;
      if (isEssay) {
        unit = sentences === null
          ? haystackSentence(random)
          : sentences[(start + units.length) % sentences.length] as string;
      } else if (config.haystack === "noise") {
        unit = wording.noise;
      } else {
        const distractor = makeNeedle(freshValue(random, keyType, used));
        distractors.push(distractor);
        unit = distractor.text;
      }
      let tokens: number;
      if (config.haystack === "noise") {
        if (noiseTokens < 0) noiseTokens = codec.encode(joiner + unit).length;
        tokens = noiseTokens;
      } else tokens = codec.encode(joiner + unit).length;
      unitTokens.push((unitTokens[units.length] as number) + tokens);
      units.push(unit);
    }
  };
  /** Position of needle i among `count` units: it stands before that unit. */
  const place = (i: number, count: number): number =>
    Math.floor((shares[i] as number) * (isEssay ? count : count + 1));
  const contextOf = (count: number, rest?: string): string => {
    grow(count);
    const parts: string[] = [];
    let next = 0;
    for (let u = 0; u <= count; u++) {
      while (next < needles.length && place(next, count) === u) {
        parts.push((needles[next++] as Needle).text);
      }
      if (u < count) parts.push(units[u] as string);
    }
    if (rest !== undefined) parts.push(rest);
    return parts.join(joiner);
  };
  let fixed = codec.encode(head).length +
    codec.encode(first.question + first.answerPrefix).length;
  for (const needle of needles) {
    fixed += codec.encode(joiner + needle.text).length;
  }
  const estimate = (count: number): number => {
    grow(count);
    return fixed + (unitTokens[count] as number);
  };
  // Grow until the estimate passes the limit: no unit beyond that can fit.
  let max = 0;
  while (max < 10_000_000 && estimate(max) <= limit) max++;
  const around = (context: string): string =>
    head + context + first.question + first.answerPrefix;
  const whole = fitUnits(codec, {
    limit,
    min: 0,
    max: max + 2,
    estimate,
    build: (count) => around(contextOf(count)),
  });
  const fit = config.haystack === "noise"
    ? fillRest(codec, whole, {
      limit,
      parts: beginnings(wording.noise),
      build: (rest) => around(contextOf(whole.count, rest)),
    })
    : whole;
  const context = fit.text.slice(
    head.length,
    fit.text.length - first.question.length - first.answerPrefix.length,
  );
  return {
    context,
    keys: [...keys, ...distractors.slice(0, fit.count).map((n) => n.key)],
    depths: needles.map((_, i) =>
      fit.count === 0 ? 0 : Math.round(100 * place(i, fit.count) / fit.count)
    ),
    units: fit.count,
    tokens: fit.tokens,
    ask,
    first: {
      ...first,
      prompt: head + context + first.question,
      meta: {
        promptTokens: fit.tokens,
        units: fit.count,
        query: asked,
        depths: needles.flatMap((n, i) =>
          asked.includes(n.key) && fit.count > 0
            ? [Math.round(100 * place(i, fit.count) / fit.count)]
            : []
        ),
      },
    },
  };
}
