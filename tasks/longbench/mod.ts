/**
 * LongBench: 21 data sets from the user's download, LongBench-E among them.
 *
 * Benchmark: LongBench, https://arxiv.org/abs/2308.14508
 * Wording: the official `dataset2prompt.json` where the user gives it, else our own, and records say which.
 *
 * @module
 */
import { z } from "zod";
import { fillSlots } from "../_sizing.ts";
import { Random } from "../random.ts";
import { fingerprint } from "../text/fingerprint.ts";
import { givenOptions } from "../types.ts";
import type { Example, Json, Task } from "../types.ts";
import { LONGBENCH_DATA_SETS } from "./data_sets.ts";
import { type LongBenchRecord, readEntry, readLongBench } from "./records.ts";
import { OWN_PROMPTS } from "./_wording.ts";

export { LONGBENCH_DATA_SETS, type LongBenchDataSet } from "./data_sets.ts";

/** What stands before the name of a data set in the name of its task. */
export const LONGBENCH_PREFIX = "longbench/";

/** Options of {@linkcode longbenchTask}. */
export interface LongBenchOptions {
  /** Folder of the JSONL files, or the official zip archive. */
  data: string;
  /** The official `dataset2prompt.json`; our own wording where missing. */
  prompts?: string | undefined;
  /** The official `dataset2maxlen.json`; the same numbers are built in. */
  lengths?: string | undefined;
  /** The records of LongBench-E. Default: false. */
  e?: boolean | undefined;
  /** Records at most; all if missing. */
  limit?: number | undefined;
  /** Which records a limit takes. Default: first. */
  sample?: "first" | "random" | undefined;
  /** Seed of a random sample. Default: 42. */
  seed?: number | undefined;
  /** New tokens at most; the benchmark's own number where missing. */
  maxNewTokens?: number | undefined;
  /** Data sets whose answers end before a newline. Default: samsum, which is LongBench's rule. */
  stopAtNewline?: "samsum" | "few-shot" | "never" | undefined;
  /** Data sets that are scored on the first line of the answer. Default: few-shot, which is LongBench's rule. */
  firstLine?: "few-shot" | "always" | "never" | undefined;
  /** Similarity of code: with python-Levenshtein installed (default) or without. */
  similarity?: "indel" | "difflib" | undefined;
  /** ROUGE of very long sentences: as defined (default), or 0 as under Python's recursion limit. */
  rougeDepth?: "unlimited" | "python" | undefined;
}

const LONGBENCH_SCHEMA = z.strictObject({
  data: z.string().min(1).describe(
    "Folder of the JSONL files, or the official zip archive",
  ),
  prompts: z.string().min(1).optional().describe(
    "The official dataset2prompt.json; our own wording where missing",
  ),
  lengths: z.string().min(1).optional().describe(
    "The official dataset2maxlen.json; the same numbers are built in",
  ),
  e: z.boolean().default(false).describe("The records of LongBench-E"),
  limit: z.int().min(1).optional().describe("Records at most; all if missing"),
  sample: z.enum(["first", "random"]).default("first").describe(
    "Which records a limit takes",
  ),
  seed: z.int().min(0).default(42).describe("Seed of a random sample"),
  maxNewTokens: z.int().min(1).optional().describe(
    "New tokens at most; the benchmark's own number where missing",
  ),
  stopAtNewline: z.enum(["samsum", "few-shot", "never"]).default("samsum")
    .describe(
      "Data sets whose answers end before a newline: samsum (LongBench's rule), few-shot (all that are scored on their first line), never",
    ),
  firstLine: z.enum(["few-shot", "always", "never"]).default("few-shot")
    .describe(
      "Data sets that are scored on the first line of the answer: few-shot is LongBench's rule",
    ),
  similarity: z.enum(["indel", "difflib"]).default("indel").describe(
    "Similarity of code: with python-Levenshtein installed (indel) or without",
  ),
  rougeDepth: z.enum(["unlimited", "python"]).default("unlimited").describe(
    "ROUGE of very long sentences: as defined, or 0 as under Python's recursion limit",
  ),
}) satisfies z.ZodType<unknown, LongBenchOptions>;
type Resolved = z.output<typeof LONGBENCH_SCHEMA>;

/**
 * Makes the task of one data set; reads its file at once, so that broken data is found before any work.
 *
 * @param dataset Name of the data set, without `_e`.
 * @throws {TypeError} There is no such data set, or LongBench-E lacks it.
 * @throws {z.ZodError} An option is wrong.
 * @throws {SyntaxError} A file is broken; the message names it and the line.
 * @throws {Deno.errors.NotFound} A file is not there.
 */
export function longbenchTask(
  dataset: string,
  options: LongBenchOptions,
): Task {
  const facts = LONGBENCH_DATA_SETS.get(dataset);
  const resolved = LONGBENCH_SCHEMA.parse(options);
  if (facts === undefined || (resolved.e && !facts.extended)) {
    const names = [...LONGBENCH_DATA_SETS].flatMap(([name, { extended }]) =>
      resolved.e && !extended ? [] : [name]
    );
    throw new TypeError(
      `Cannot make a LongBench${
        resolved.e ? "-E" : ""
      } task as its data set must be one of ${
        names.join(", ")
      }: data set is "${dataset}"`,
    );
  }
  const name = resolved.e ? `${dataset}_e` : dataset;
  const { records, fingerprint: data } = readLongBench(resolved.data, name);
  const template = resolved.prompts === undefined
    ? OWN_PROMPTS[dataset]!
    : readEntry(
      resolved.prompts,
      dataset,
      z.string().includes("{context}"),
    );
  const maxNewTokens = resolved.maxNewTokens ??
    (resolved.lengths === undefined
      ? facts.maxNewTokens
      : readEntry(resolved.lengths, dataset, z.int().min(1)));
  const stopAtNewline = resolved.stopAtNewline === "few-shot"
    ? facts.firstLine
    : resolved.stopAtNewline === dataset;

  const exampleOf = (record: LongBenchRecord, index: number): Example => ({
    id: `${name}-${index}`,
    prompt: fillSlots(template, {
      context: record.context,
      input: record.input,
    }),
    answerPrefix: "",
    answers: record.answers,
    maxNewTokens,
    stopAtNewline,
    ...(facts.completion ? { completion: true } : {}),
    meta: {
      index,
      dataset: name,
      recordId: record._id,
      length: record.length,
      language: record.language,
    },
  });
  const chosen = choose(records.length, resolved, name);
  return {
    name: LONGBENCH_PREFIX + name,
    metric: facts.metric,
    metricOptions: metricOptions(facts.metric, resolved, {
      firstLine: facts.firstLine,
      // One label set serves the whole data set, and LongBench takes that of the last record.
      labels: records.at(-1)?.all_classes ?? null,
    }),
    options: {
      data,
      wording: resolved.prompts === undefined ? "own" : fingerprint([template]),
      maxNewTokens,
      stopAtNewline,
    },
    recipe: {
      name: LONGBENCH_PREFIX + dataset,
      options: givenOptions(options),
    },
    count: chosen.length,
    *examples() {
      for (const index of chosen) yield exampleOf(records[index]!, index);
    },
  };
}

/** Indices of the records that are taken, ascending. */
function choose(
  count: number,
  { limit = count, sample, seed }: Resolved,
  name: string,
): number[] {
  const taken = Math.min(limit, count);
  if (sample === "first") return Array.from({ length: taken }, (_, i) => i);
  return new Random(seed, "longbench", name).distinct(taken, count)
    .sort((a, b) => a - b);
}

function metricOptions(
  metric: string,
  { firstLine, similarity, rougeDepth }: Resolved,
  facts: { firstLine: boolean; labels: string[] | null },
): { [key: string]: Json } {
  return {
    firstLine: firstLine === "few-shot"
      ? facts.firstLine
      : firstLine === "always",
    ...(metric === "code_sim" ? { similarity } : {}),
    ...(metric.startsWith("rouge") ? { depth: rougeDepth } : {}),
    ...(metric === "classification" ? { labels: facts.labels ?? [] } : {}),
  };
}
