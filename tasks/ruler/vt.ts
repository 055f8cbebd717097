/**
 * Variable tracking: which variables hold a value after a chain of assignments hidden in noise.
 *
 * @module
 */
import type { Random } from "../random.ts";
import type { TextCodec } from "../types.ts";
import { fillRest, fillSlots, fitUnits } from "../_sizing.ts";
import {
  beginnings,
  type Draft,
  type Question,
  randomLetters,
} from "./_parts.ts";
import type { ResolvedWording } from "./_wording.ts";

/** New tokens of the official benchmark. */
export const VT_NEW_TOKENS = 30;

/** Tokens of the worked example at most. */
const SHOT_TOKENS = 500;

const CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/** How an example is made. */
export interface VtOptions {
  /** Wording; slots {context}, {query}, {num_v}. */
  wording: ResolvedWording;
  /** Tokens of prompt and answer prefix at most. */
  limit: number;
  /** Chains of variables; the first is asked for. */
  chains: number;
  /** Assignments from variable to variable in a chain. */
  hops: number;
  /** Whether a worked example stands first; left out where it would take more than a quarter of the prompt. */
  shot: boolean;
}

/** A context with the question of its first chain. */
export interface VtDraft extends Draft {
  /** The same question about each of the other chains. */
  others: Question[];
}

/** Makes one context with its question. */
function makeOne(
  random: Random,
  codec: TextCodec,
  { wording, limit, chains, hops, letters, before, used }:
    & Omit<VtOptions, "shot">
    & { letters: number; before: string; used: Set<string> },
): VtDraft & { tokens: number; units: number } {
  const fresh = (make: () => string): string => {
    for (;;) {
      const name = make();
      if (!used.has(name)) {
        used.add(name);
        return name;
      }
    }
  };
  const values: string[] = [];
  const names: string[][] = [];
  const statements: string[][] = [];
  for (let c = 0; c < chains; c++) {
    const value = fresh(() => String(random.between(10_000, 99_998)));
    const chain: string[] = [];
    for (let h = 0; h <= hops; h++) {
      chain.push(fresh(() => randomLetters(random, letters, CAPITALS)));
    }
    values.push(value);
    names.push(chain);
    statements.push(
      chain.map((name, i) =>
        `VAR ${name} = ${i === 0 ? value : `VAR ${chain[i - 1]}`}`
      ),
    );
  }
  const [head = "", tail = ""] = wording.template.split("{context}");
  const [first, ...others] = names.map((answers, chain): Question => {
    const slots = { query: values[chain] as string, "num_v": answers.length };
    return {
      question: fillSlots(tail, slots),
      answerPrefix: fillSlots(wording.answerPrefix, slots),
      answers,
      target: ` ${answers.join(" ")}`,
    };
  }) as [Question, ...Question[]];
  const start = before +
    fillSlots(head, { query: values[0] as string, "num_v": hops + 1 });
  const end = first.question + first.answerPrefix;

  // Sorted shares keep the order within a chain; chains mix freely.
  const placed = statements.flatMap((chain) => {
    const shares = chain.map(() => random.float()).sort((a, b) => a - b);
    return chain.map((text, i) => ({ text, share: shares[i] as number }));
  }).sort((a, b) => a.share - b.share);
  const build = (count: number, rest?: string): string => {
    const parts: string[] = [];
    let next = 0;
    for (let u = 0; u <= count; u++) {
      for (;;) {
        const statement = placed[next];
        if (
          statement === undefined ||
          Math.floor(statement.share * (count + 1)) !== u
        ) break;
        parts.push(statement.text);
        next++;
      }
      if (u < count) parts.push(wording.noise);
    }
    if (rest !== undefined) parts.push(rest);
    return start + parts.join("\n") + end;
  };
  const fixed = codec.encode(build(0)).length;
  const noiseTokens = codec.encode("\n" + wording.noise).length;
  const whole = fitUnits(codec, {
    limit,
    min: 0,
    max: Math.max(0, Math.ceil(2 * (limit - fixed) / noiseTokens)),
    estimate: (count) => fixed + count * noiseTokens,
    build,
  });
  const fit = fillRest(codec, whole, {
    limit,
    parts: beginnings(wording.noise),
    build: (rest) => build(whole.count, rest),
  });
  return {
    ...first,
    prompt: fit.text.slice(0, fit.text.length - first.answerPrefix.length),
    others,
    meta: {},
    tokens: fit.tokens,
    units: fit.count,
  };
}

/**
 * Makes one variable-tracking example.
 *
 * @throws {RangeError} If the statements and the question alone have more tokens than the limit.
 */
export function makeVt(
  random: Random,
  codec: TextCodec,
  { wording, limit, chains, hops, shot }: VtOptions,
): VtDraft {
  const used = new Set<string>();
  let before = "";
  if (shot) {
    try {
      const example = makeOne(random, codec, {
        wording,
        limit: Math.min(SHOT_TOKENS, Math.floor(limit / 4)),
        chains,
        hops,
        letters: 3,
        before: "",
        used,
      });
      before = `${example.prompt}${example.answerPrefix}${example.target}\n\n`;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
    }
  }
  const { tokens, units, ...draft } = makeOne(random, codec, {
    wording,
    limit,
    chains,
    hops,
    letters: 5,
    before,
    used,
  });
  return {
    ...draft,
    meta: { promptTokens: tokens, units, shots: before === "" ? 0 : 1 },
  };
}
