/**
 * Needle in a haystack: a grid of lengths and depths.
 *
 * @module
 */
import { z } from "zod";
import { Random } from "./random.ts";
import { givenOptions } from "./types.ts";
import type { Example, Json, Task, TextCodec } from "./types.ts";
import { readTexts } from "./_files.ts";
import { fingerprint } from "./text/fingerprint.ts";
import { haystackSentence } from "./text/haystack.ts";
import { fillSlots } from "./_sizing.ts";
import { randomValue } from "./ruler/_parts.ts";
import { resolveWording } from "./ruler/_wording.ts";

/** A needle of the user. */
export interface CustomNeedle {
  /** The sentence that is hidden. */
  text: string;
  /** What is asked. */
  question: string;
  /** The answer that is expected. */
  answer: string;
  /** How the answer begins. Default: nothing. */
  answerPrefix?: string | undefined;
  /** Prompt with the slots `{context}` and `{question}`. Default: both, with blank lines between. */
  template?: string | undefined;
}

/** Options of {@linkcode needleTask}. */
export interface NeedleOptions {
  /** Tokens of prompt, answer prefix, new tokens and buffer together. Default: 512, 1024, 2048, 4096. */
  lengths?: number[] | undefined;
  /** How many depths from 0 to 100 percent, or the depths. Default: 10. */
  depths?: number | number[] | undefined;
  /** Spacing of the depths where their number is given. Default: linear. */
  depthSpacing?: "linear" | "sigmoid" | undefined;
  /** Examples per length and depth. Default: 1. */
  examplesPerCell?: number | undefined;
  /** Seed of the examples. Default: 42. */
  seed?: number | undefined;
  /** Tokens kept free. Default: 0. */
  buffer?: number | undefined;
  /** New tokens at most. Default: 30. */
  maxNewTokens?: number | undefined;
  /** A needle in place of our own, which has a fresh key and number every time. */
  needle?: CustomNeedle | undefined;
  /** Folder of .txt files to hide the needle in; our own language where missing. */
  haystack?: string | undefined;
  /** Whether answers end before a newline. Default: true. */
  stopAtNewline?: boolean | undefined;
}

const CUSTOM_NEEDLE_SCHEMA = z.strictObject({
  text: z.string().min(1).describe("The sentence that is hidden"),
  question: z.string().min(1).describe("What is asked"),
  answer: z.string().min(1).describe("The answer that is expected"),
  answerPrefix: z.string().default("").describe("How the answer begins"),
  template: z.string().default("{context}\n\n{question}\n").refine(
    (s) => s.includes("{context}") && s.includes("{question}"),
    "needs the slots {context} and {question}",
  ).describe("Prompt with the slots {context} and {question}"),
});

const NEEDLE_SCHEMA = z.strictObject({
  lengths: z.array(z.int().min(64)).min(1).default([512, 1024, 2048, 4096])
    .describe(
      "Tokens of prompt, answer prefix, new tokens and buffer together",
    ),
  depths: z.union([z.int().min(1), z.array(z.number().min(0).max(100)).min(1)])
    .default(10).describe(
      "How many depths from 0 to 100 percent, or the depths",
    ),
  depthSpacing: z.enum(["linear", "sigmoid"]).default("linear").describe(
    "Spacing of the depths where their number is given",
  ),
  examplesPerCell: z.int().min(1).default(1).describe(
    "Examples per length and depth",
  ),
  seed: z.int().min(0).default(42).describe("Seed of the examples"),
  buffer: z.int().min(0).default(0).describe("Tokens kept free"),
  maxNewTokens: z.int().min(1).default(30).describe("New tokens at most"),
  needle: CUSTOM_NEEDLE_SCHEMA.optional().describe(
    "A needle in place of our own, which has a fresh key and number every time",
  ),
  haystack: z.string().min(1).optional().describe(
    "Folder of .txt files to hide the needle in; our own language where missing",
  ),
  stopAtNewline: z.boolean().default(true).describe(
    "Whether answers end before a newline",
  ),
}) satisfies z.ZodType<unknown, NeedleOptions>;

/**
 * Depths in percent from 0 to 100: equally spaced and rounded, or crowded at both ends.
 */
export function needleDepths(
  count: number,
  spacing: "linear" | "sigmoid",
): number[] {
  const out: number[] = [];
  for (let i = 0; i < count; i++) {
    const x = count === 1 ? 0 : 100 * i / (count - 1);
    if (spacing === "linear") out.push(Math.round(x));
    else if (x === 0 || x === 100) out.push(x);
    else out.push(Math.round(1e5 / (1 + Math.exp(-0.1 * (x - 50)))) / 1e3);
  }
  return out;
}

/** Finds full-stop tokens: those whose text, trimmed on the right, ends with a full stop. */
class FullStops {
  #codec: TextCodec;
  #known = new Map<number, boolean>();

  constructor(codec: TextCodec) {
    this.#codec = codec;
  }

  /** Whether the token ends a sentence. */
  has(id: number): boolean {
    let known = this.#known.get(id);
    if (known === undefined) {
      known = this.#codec.decode([id]).trimEnd().endsWith(".");
      this.#known.set(id, known);
    }
    return known;
  }

  /** The last position up to `from` that follows a full stop, or 0. */
  before(ids: readonly number[], from: number): number {
    let at = from;
    while (at > 0 && !this.has(ids[at - 1] as number)) at--;
    return at;
  }
}

/** What is hidden and asked in one example. */
interface Hidden {
  text: string;
  head: string;
  tail: string;
  answerPrefix: string;
  answer: string;
}

/** An example with what a model that knows the answer would say. */
export interface WorkedNeedle extends Example {
  /** The answer as text that follows the answer prefix. */
  target: string;
}

/** The needle task; its examples can also be had one by one, with their targets. */
export interface NeedleTask extends Task {
  /** Example `index` of a cell, the same whatever was generated before. */
  example(
    codec: TextCodec,
    cell: { length: number; depth: number; index: number },
  ): WorkedNeedle;
}

/**
 * Makes the needle task.
 *
 * @throws {z.ZodError} If an option is wrong.
 */
export function needleTask(options: NeedleOptions): NeedleTask {
  const resolved = NEEDLE_SCHEMA.parse(options);
  const { lengths, seed, buffer, maxNewTokens, examplesPerCell } = resolved;
  const depths = typeof resolved.depths === "number"
    ? needleDepths(resolved.depths, resolved.depthSpacing)
    : resolved.depths;
  const wording = resolveWording("needle", "niah", undefined);
  const texts = resolved.haystack === undefined
    ? undefined
    : readTexts(resolved.haystack);
  const essays = texts?.join("\n");
  // The encoded start of the essays, kept for the codec that asked last.
  let cache: { codec: TextCodec; ids: number[] } | null = null;
  let stops: { codec: TextCodec; table: FullStops } | null = null;

  const hide = (random: Random): Hidden => {
    const custom = resolved.needle;
    if (custom !== undefined) {
      const [head = "", tail = ""] = fillSlots(custom.template, {
        question: custom.question,
      }).split("{context}");
      return { ...custom, head, tail };
    }
    const key = randomValue(random, "words");
    const value = randomValue(random, "numbers");
    const slots = { type: "numbers", kind: "number", key, value, query: key };
    const [head = "", tail = ""] = wording.templateOne.split("{context}");
    return {
      text: fillSlots(wording.needle, slots),
      head: fillSlots(head, slots),
      tail: fillSlots(tail, slots),
      answerPrefix: fillSlots(wording.answerPrefixOne, slots),
      answer: value,
    };
  };
  /** At least `count` tokens of haystack. */
  const haystack = (
    codec: TextCodec,
    random: Random,
    count: number,
  ): number[] => {
    if (essays !== undefined) {
      if (cache?.codec !== codec || cache.ids.length < count) {
        let text = essays;
        let ids = codec.encode(text);
        if (ids.length === 0) {
          throw new RangeError(
            "Cannot build a haystack as its texts must have tokens: they have 0",
          );
        }
        const repeats = Math.ceil(count / ids.length);
        if (repeats > 1) {
          text = Array<string>(repeats + 1).fill(essays).join("\n");
          ids = codec.encode(text);
        }
        cache = { codec, ids };
      }
      return cache.ids.slice(0, count);
    }
    const ids: number[] = [];
    while (ids.length < count) {
      const lead = ids.length === 0 ? "" : " ";
      for (const id of codec.encode(lead + haystackSentence(random))) {
        ids.push(id);
      }
    }
    return ids.slice(0, count);
  };

  const example: NeedleTask["example"] = (codec, { length, depth, index }) => {
    const random = new Random(seed, "needle", length, depth, index);
    const { text, head, tail, answerPrefix, answer } = hide(random);
    if (stops?.codec !== codec) stops = { codec, table: new FullStops(codec) };
    const { table } = stops;
    const limit = length - maxNewTokens - buffer;
    const fixed = codec.encode(head).length +
      codec.encode(` ${text} `).length +
      codec.encode(tail + answerPrefix).length;
    let room = limit - fixed;
    if (room < 0) {
      throw new RangeError(
        `Cannot build the needle prompt as needle and question must fit in ${limit} tokens: they have ${fixed}`,
      );
    }
    const all = haystack(codec, random, room);
    for (;;) {
      let ids = all.slice(0, room);
      // End with a whole sentence where that costs little.
      const whole = table.before(ids, ids.length);
      if (ids.length - whole <= 0.02 * length) ids = ids.slice(0, whole);
      const at = depth >= 100
        ? ids.length
        : table.before(ids, Math.floor(ids.length * depth / 100));
      // A cut inside a character leaves a replacement character; it goes.
      const clean = (part: number[]): string =>
        codec.decode(part).replace(/^\uFFFD+|\uFFFD+$/g, "");
      const left = clean(ids.slice(0, at)).trimEnd();
      const right = clean(ids.slice(at)).trimStart();
      const before = head + (left === "" ? "" : `${left} `);
      const prompt = before + text + (right === "" ? "" : ` ${right}`) + tail;
      const tokens = codec.encode(prompt + answerPrefix).length;
      if (tokens > limit && room > 0) {
        room = Math.max(0, room - Math.max(1, tokens - limit));
        continue;
      }
      return {
        id: `needle-${length}-${depth}-${seed}-${index}`,
        prompt,
        answerPrefix,
        answers: [answer],
        maxNewTokens,
        stopAtNewline: resolved.stopAtNewline,
        meta: {
          index,
          length,
          depth,
          promptTokens: tokens,
          needle: text,
          needleTokens: [
            codec.encode(before.trimEnd()).length,
            codec.encode(before + text).length,
          ],
        },
        target: ` ${answer}`,
      };
    }
  };
  const record: { [key: string]: Json } = {
    seed,
    buffer,
    maxNewTokens,
    needle: resolved.needle ?? "own",
    haystack: texts === undefined ? "own" : fingerprint(texts),
  };
  return {
    name: "needle",
    metric: "string_match_all",
    scores: [
      { metric: "needle_rouge1", answers: ({ meta }) => [String(meta.needle)] },
      { metric: "needle_words", answers: ({ answers }) => answers },
    ],
    options: record,
    recipe: { name: "needle", options: givenOptions(options) },
    count: lengths.length * depths.length * examplesPerCell,
    example,
    *examples(codec) {
      for (const length of lengths) {
        for (const depth of depths) {
          for (let index = 0; index < examplesPerCell; index++) {
            const { target: _target, ...rest } = example(codec, {
              length,
              depth,
              index,
            });
            yield rest;
          }
        }
      }
    },
  };
}
