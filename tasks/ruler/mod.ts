/**
 * The thirteen RULER tasks.
 *
 * @module
 */
import { z } from "zod";
import { Random } from "../random.ts";
import { givenOptions } from "../types.ts";
import type { Example, Json, Task, TextCodec } from "../types.ts";
import { splitSentences } from "../text/haystack.ts";
import { fingerprint, fingerprintBytes } from "../text/fingerprint.ts";
import { jsonOf, readDataFile, readTexts } from "../_files.ts";
import { CWE_NEW_TOKENS, makeCwe } from "./cwe.ts";
import { FWE_NEW_TOKENS, makeFwe } from "./fwe.ts";
import { makeNiah, NIAH_NEW_TOKENS, NIAH_TASKS } from "./niah.ts";
import { type Draft, newTokens } from "./_parts.ts";
import {
  makeQa,
  parseHotpot,
  parseSquad,
  QA_NEW_TOKENS,
  type QaSource,
} from "./qa.ts";
import { readRuler } from "./files.ts";
import { makeVt, VT_NEW_TOKENS } from "./vt.ts";
import { resolveWording, type Wording, WORDING_SCHEMA } from "./_wording.ts";

export type { TaskWording, Wording } from "./_wording.ts";

/** Options of {@linkcode rulerTask}. */
export interface RulerOptions {
  /** Tokens of the prompt, the answer prefix and the new tokens together. Default: 4096. */
  length?: number | undefined;
  /** Examples; at most as many as a file has. Default: 100. */
  count?: number | undefined;
  /** Folder of ready records (`<length>/<task>.jsonl`) in place of generated ones. */
  data?: string | undefined;
  /** Seed of the examples. Default: 42. */
  seed?: number | undefined;
  /** New tokens at most; the benchmark's own number where missing. */
  maxNewTokens?: number | undefined;
  /** Wording in place of our own: a JSON file or its content. */
  wording?: string | Wording | undefined;
  /** Folder of .txt files for the essay haystack; our own language where missing. */
  haystack?: string | undefined;
  /** SQuAD 2.0 file, for `qa_1`; invented questions where missing. */
  squad?: string | undefined;
  /** HotpotQA file (distractor form), for `qa_2`; invented questions where missing. */
  hotpot?: string | undefined;
  /** RULER's cleaning of answers before they are scored; KVCache-Factory has none. Default: true. */
  clean?: boolean | undefined;
  /** Chains of variables, for `vt`. Default: 1. */
  chains?: number | undefined;
  /** Assignments per chain, for `vt`. Default: 4. */
  hops?: number | undefined;
  /** Worked example, for `vt`. Default: true. */
  shot?: boolean | undefined;
  /** Zipf exponent, for `fwe`. Default: 2. */
  alpha?: number | undefined;
}

const RULER_SCHEMA = z.strictObject({
  length: z.int().min(256).default(4096).describe(
    "Tokens of the prompt, the answer prefix and the new tokens together",
  ),
  count: z.int().min(1).default(100).describe(
    "Examples; at most as many as a file has",
  ),
  data: z.string().min(1).optional().describe(
    "Folder of ready records (<length>/<task>.jsonl) in place of generated ones",
  ),
  seed: z.int().min(0).default(42).describe("Seed of the examples"),
  maxNewTokens: z.int().min(1).optional().describe(
    "New tokens at most; the benchmark's own number where missing",
  ),
  wording: z.union([z.string().min(1), WORDING_SCHEMA]).optional().describe(
    "Wording in place of our own: a JSON file or its content",
  ),
  haystack: z.string().min(1).optional().describe(
    "Folder of .txt files for the essay haystack; our own language where missing",
  ),
  squad: z.string().min(1).optional().describe(
    "SQuAD 2.0 file, for qa_1; invented questions where missing",
  ),
  hotpot: z.string().min(1).optional().describe(
    "HotpotQA file (distractor form), for qa_2; invented questions where missing",
  ),
  clean: z.boolean().default(true).describe(
    "RULER's cleaning of answers before they are scored; KVCache-Factory has none",
  ),
  chains: z.int().min(1).default(1).describe("Chains of variables, for vt"),
  hops: z.int().min(1).default(4).describe("Assignments per chain, for vt"),
  shot: z.boolean().default(true).describe("Worked example, for vt"),
  alpha: z.number().gt(1).default(2).describe("Zipf exponent, for fwe"),
}) satisfies z.ZodType<unknown, RulerOptions>;
type Resolved = z.output<typeof RULER_SCHEMA>;

/** Share of the length that a prompt may fall short of it before it is drawn again. */
const TOLERANCE = 0.02;

/** Draws of one example at most; units of some tasks are coarse, so that not every draw fills the length. */
const ATTEMPTS = 12;

/** Options with the content of the files that they name, and the fingerprints of these. */
interface Loaded
  extends Omit<Resolved, "wording" | "haystack" | "squad" | "hotpot" | "data"> {
  wording: Wording | undefined;
  sentences: readonly string[] | null;
  questions: QaSource | null;
  fingerprints: { [option: string]: Json };
}

/** Reads the files that a task needs; those of other tasks are left alone. */
function load(name: string, options: Resolved): Loaded {
  const { wording, haystack, squad, hotpot, data: _data, ...rest } = options;
  const essays = haystack !== undefined && isEssayTask(name)
    ? readTexts(haystack)
    : null;
  const qaPath = name === "qa_1" ? squad : name === "qa_2" ? hotpot : undefined;
  const qaFile = qaPath === undefined ? null : readDataFile(qaPath);
  const words = typeof wording === "string"
    ? jsonOf(readDataFile(wording), WORDING_SCHEMA)
    : wording;
  return {
    ...rest,
    wording: words,
    sentences: essays === null ? null : splitSentences(essays.join("\n")),
    questions: qaFile === null
      ? null
      : name === "qa_1"
      ? parseSquad(qaFile)
      : parseHotpot(qaFile),
    fingerprints: {
      wording: words === undefined
        ? "own"
        : fingerprint([JSON.stringify(words)]),
      ...(essays === null ? {} : { haystack: fingerprint(essays) }),
      ...(qaFile === null ? {} : { questions: fingerprintBytes(qaFile.bytes) }),
    },
  };
}

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
  maker(task: string, options: Loaded): Maker;
}

const niah: Kind = {
  group: "niah",
  metric: "string_match_all",
  newTokens: NIAH_NEW_TOKENS,
  maker(task, { wording, sentences }) {
    const config = NIAH_TASKS[task];
    if (config === undefined) throw new TypeError(`Unknown task: "${task}"`);
    const resolved = resolveWording(task, "niah", wording);
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
  maker(task, { wording, questions: source }) {
    const resolved = resolveWording(task, "qa", wording);
    const hops = task === "qa_2" ? 2 : 1;
    return (random, codec, { limit, index }) =>
      makeQa(random, codec, { wording: resolved, limit, source, hops, index });
  },
};

function isEssayTask(name: string): boolean {
  return NIAH_TASKS[name]?.haystack === "essay";
}

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
  const parsed = RULER_SCHEMA.parse(options);
  if (parsed.data !== undefined) {
    refuseGeneration(options);
    return {
      ...fileTask(name, kind, parsed.data, parsed),
      recipe: { name, options: givenOptions(options) },
    };
  }
  const resolved = load(name, parsed);
  const wording = resolveWording(name, kind.group, resolved.wording);
  const maxNewTokens = resolved.maxNewTokens ?? wording.tokensToGenerate ??
    newTokens(kind.newTokens, resolved.length);
  const make = kind.maker(name, resolved);
  const { length, seed, count } = resolved;

  const limit = length - maxNewTokens;
  /** The first draft that misses the length by little, else the one that misses it by least. */
  const draftOf = (codec: TextCodec, index: number): Draft => {
    let best: Draft | null = null;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const keys = attempt === 0 ? [] : [attempt];
      const random = new Random(seed, name, length, index, ...keys);
      const draft = make(random, codec, { limit, index });
      const tokens = draft.meta.promptTokens as number;
      if (limit - tokens <= TOLERANCE * length) return draft;
      if (best === null || tokens > (best.meta.promptTokens as number)) {
        best = draft;
      }
    }
    return best!;
  };
  const example = (codec: TextCodec, index: number): WorkedExample => {
    const draft = draftOf(codec, index);
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
    metricOptions: { clean: resolved.clean },
    options: recordable(name, { ...resolved, maxNewTokens }),
    recipe: { name, options: givenOptions(options) },
    count,
    example,
    *examples(codec) {
      for (let i = 0; i < count; i++) yield withoutTarget(example(codec, i));
    },
  };
}

/** Options that only generated examples have. */
const GENERATION = [
  "seed",
  "wording",
  "haystack",
  "squad",
  "hotpot",
  "chains",
  "hops",
  "shot",
  "alpha",
] as const;

function refuseGeneration(options: RulerOptions): void {
  const given = GENERATION.filter((name) => options[name] !== undefined);
  if (given.length === 0) return;
  throw new TypeError(
    `Cannot make a RULER task as ready records take no options of generated ones: ${
      given.join(", ")
    }`,
  );
}

/** A task of ready records. */
function fileTask(
  name: string,
  kind: Kind,
  folder: string,
  { length, count, clean, maxNewTokens = kind.newTokens }: Resolved,
): Omit<RulerTask, "recipe"> {
  const { records, fingerprint: data } = readRuler(folder, length, name);
  const taken = Math.min(count, records.length);
  const example = (_codec: TextCodec, index: number): WorkedExample => {
    const record = records[index];
    if (record === undefined) {
      throw new RangeError(
        `Cannot make an example as its index must be below ${records.length}: it is ${index}`,
      );
    }
    return {
      id: `${name}-${length}-file-${index}`,
      prompt: record.input,
      answerPrefix: record.answer_prefix,
      answers: record.outputs,
      maxNewTokens,
      stopAtNewline: false,
      meta: { index, length, recordIndex: record.index },
      target: ` ${record.outputs.join(", ")}`,
    };
  };
  return {
    name,
    metric: kind.metric,
    metricOptions: { clean },
    options: { length, data, maxNewTokens },
    count: taken,
    example,
    *examples(codec) {
      for (let i = 0; i < taken; i++) yield withoutTarget(example(codec, i));
    },
  };
}

function withoutTarget({ target: _target, ...rest }: WorkedExample): Example {
  return rest;
}

/** Options for records: those that decide the task's examples. */
function recordable(
  name: string,
  { length, seed, maxNewTokens, fingerprints, ...rest }: Loaded,
): { [key: string]: Json } {
  const { chains, hops, shot, alpha } = rest;
  return {
    length,
    seed,
    ...(maxNewTokens === undefined ? {} : { maxNewTokens }),
    ...(name === "vt" ? { chains, hops, shot } : {}),
    ...(name === "fwe" ? { alpha } : {}),
    ...fingerprints,
  };
}
