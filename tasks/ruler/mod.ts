/**
 * The thirteen RULER tasks.
 *
 * @module
 */
import { z } from "zod";
import { Random } from "../random.ts";
import type { Example, Json, Task, TextCodec } from "../types.ts";
import { splitSentences } from "../text/haystack.ts";
import { fingerprint } from "../text/fingerprint.ts";
import { CWE_NEW_TOKENS, makeCwe } from "./cwe.ts";
import { FWE_NEW_TOKENS, makeFwe } from "./fwe.ts";
import { makeNiah, NIAH_NEW_TOKENS, NIAH_TASKS } from "./niah.ts";
import { type Draft, newTokens } from "./_parts.ts";
import { makeQa, parseHotpot, parseSquad, QA_NEW_TOKENS } from "./qa.ts";
import { makeVt, VT_NEW_TOKENS } from "./vt.ts";
import { resolveWording, WORDING_SCHEMA } from "./_wording.ts";

export { parseHotpot, parseSquad } from "./qa.ts";
export type { QaQuestion, QaSource } from "./qa.ts";
export { DEFAULT_WORDING, NEEDLE, WORDING_SCHEMA } from "./_wording.ts";
export type { TaskWording, Wording } from "./_wording.ts";

/** Options of every RULER task. */
export const RULER_SCHEMA = z.strictObject({
  length: z.int().min(256).default(4096).describe(
    "Tokens of the prompt, the answer prefix and the new tokens together",
  ),
  count: z.int().min(1).default(100).describe("Examples"),
  seed: z.int().min(0).default(42).describe("Seed of the examples"),
  maxNewTokens: z.int().min(1).optional().describe(
    "New tokens at most; the benchmark's own number where missing",
  ),
  wording: WORDING_SCHEMA.optional().describe("Wording in place of our own"),
  essays: z.array(z.string().min(1)).min(1).optional().describe(
    "Texts of the essay haystack; our own language where missing",
  ),
  squad: z.string().optional().describe("Text of a SQuAD file, for qa_1"),
  hotpot: z.string().optional().describe("Text of a HotpotQA file, for qa_2"),
  chains: z.int().min(1).default(1).describe("Chains of variables, for vt"),
  hops: z.int().min(1).default(4).describe("Assignments per chain, for vt"),
  shot: z.boolean().default(true).describe("Worked example, for vt"),
  alpha: z.number().gt(1).default(2).describe("Zipf exponent, for fwe"),
});

/** Options of every RULER task, as given. */
export type RulerOptions = z.input<typeof RULER_SCHEMA>;
type Resolved = z.output<typeof RULER_SCHEMA>;

/** Makes example `index` of a task. */
type Maker = (
  random: Random,
  codec: TextCodec,
  at: { limit: number; index: number },
) => Draft;

/** One kind of task: how it is worded, how long its answers are, how its examples are made. */
interface Kind {
  group: string;
  metric: "string_match_all" | "string_match_part";
  newTokens: number;
  maker(task: string, options: Resolved): Maker;
}

const niah: Kind = {
  group: "niah",
  metric: "string_match_all",
  newTokens: NIAH_NEW_TOKENS,
  maker(task, { wording, essays }) {
    const config = NIAH_TASKS[task];
    if (config === undefined) throw new TypeError(`Unknown task: "${task}"`);
    const resolved = resolveWording(task, "niah", wording);
    const sentences = essays === undefined
      ? null
      : splitSentences(essays.join("\n"));
    return (random, codec, { limit }) =>
      makeNiah(random, codec, { config, wording: resolved, limit, sentences })
        .first;
  },
};

const vt: Kind = {
  group: "vt",
  metric: "string_match_all",
  newTokens: VT_NEW_TOKENS,
  maker(task, { wording, chains, hops, shot }) {
    const resolved = resolveWording(task, "vt", wording);
    return (random, codec, { limit }) =>
      makeVt(random, codec, { wording: resolved, limit, chains, hops, shot });
  },
};

const cwe: Kind = {
  group: "cwe",
  metric: "string_match_all",
  newTokens: CWE_NEW_TOKENS,
  maker(task, { wording, length }) {
    const resolved = resolveWording(task, "cwe", wording);
    return (random, codec, { limit }) =>
      makeCwe(random, codec, { wording: resolved, limit, length });
  },
};

const fwe: Kind = {
  group: "fwe",
  metric: "string_match_all",
  newTokens: FWE_NEW_TOKENS,
  maker(task, { wording, alpha }) {
    const resolved = resolveWording(task, "fwe", wording);
    return (random, codec, { limit }) =>
      makeFwe(random, codec, { wording: resolved, limit, alpha });
  },
};

const qa: Kind = {
  group: "qa",
  metric: "string_match_part",
  newTokens: QA_NEW_TOKENS,
  maker(task, { wording, squad, hotpot }) {
    const resolved = resolveWording(task, "qa", wording);
    const hops = task === "qa_2" ? 2 : 1;
    const source = hops === 1 && squad !== undefined
      ? parseSquad(squad)
      : hops === 2 && hotpot !== undefined
      ? parseHotpot(hotpot)
      : null;
    return (random, codec, { limit, index }) =>
      makeQa(random, codec, { wording: resolved, limit, source, hops, index });
  },
};

/** The tasks by name, in the benchmark's order. */
const KINDS: { [name: string]: Kind } = {
  ...Object.fromEntries(Object.keys(NIAH_TASKS).map((name) => [name, niah])),
  vt,
  cwe,
  fwe,
  "qa_1": qa,
  "qa_2": qa,
};

/** Names of the thirteen tasks, in the benchmark's order. */
export const RULER_TASKS: readonly string[] = Object.keys(KINDS);

/** An example with what a model that knows the answer would say; for training and for oracles. */
export interface WorkedExample extends Example {
  /** The answer as text that follows the answer prefix. */
  target: string;
}

/** A RULER task; its examples can also be had with their targets. */
export interface RulerTask extends Task {
  /** Example number `index`, the same whatever was generated before. */
  example(codec: TextCodec, index: number): WorkedExample;
}

/**
 * Makes a RULER task.
 *
 * @throws {TypeError} If the name is not one of {@linkcode RULER_TASKS}.
 * @throws {z.ZodError} If an option is wrong.
 */
export function rulerTask(name: string, options: RulerOptions): RulerTask {
  const kind = KINDS[name];
  if (kind === undefined) {
    throw new TypeError(
      `Cannot make a RULER task as its name must be one of ${
        RULER_TASKS.join(", ")
      }: name is "${name}"`,
    );
  }
  const resolved = RULER_SCHEMA.parse(options);
  const wording = resolveWording(name, kind.group, resolved.wording);
  const maxNewTokens = resolved.maxNewTokens ?? wording.tokensToGenerate ??
    newTokens(kind.newTokens, resolved.length);
  const make = kind.maker(name, resolved);
  const { length, seed, count } = resolved;

  const example = (codec: TextCodec, index: number): WorkedExample => {
    const random = new Random(seed, name, length, index);
    const draft = make(random, codec, { limit: length - maxNewTokens, index });
    return {
      id: `${name}-${length}-${seed}-${index}`,
      prompt: draft.prompt,
      answerPrefix: draft.answerPrefix,
      answers: draft.answers,
      maxNewTokens,
      stopAtNewline: false,
      meta: { index, length, ...draft.meta },
      target: draft.target,
    };
  };
  return {
    name,
    metric: kind.metric,
    options: recordable({ ...resolved, maxNewTokens }),
    example,
    *examples(codec) {
      for (let i = 0; i < count; i++) {
        const { target: _target, ...rest } = example(codec, i);
        yield rest;
      }
    },
  };
}

/** Options for records: long texts become their fingerprints. */
function recordable(options: Resolved): { [key: string]: Json } {
  const { essays, squad, hotpot, wording, ...rest } = options;
  const out: { [key: string]: Json } = {};
  for (const [key, value] of Object.entries(rest)) {
    if (value !== undefined) out[key] = value;
  }
  if (essays !== undefined) out.essays = fingerprint(essays);
  if (squad !== undefined) out.squad = fingerprint([squad]);
  if (hotpot !== undefined) out.hotpot = fingerprint([hotpot]);
  out.wording = wording === undefined
    ? "own"
    : fingerprint([JSON.stringify(wording)]);
  return out;
}
