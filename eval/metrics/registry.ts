/**
 * All metrics by name, with their options. A metric with its options resolved says in a record exactly how a score
 * came about: `{ "name": "code_sim", "variant": { "firstLine": false, "similarity": "indel" } }`.
 *
 * @module
 */
import * as z from "zod";
import type { Json, Metric } from "../../tasks/types.ts";
import { classification } from "./classification.ts";
import { codeSim } from "./code_sim.ts";
import { contains } from "./contains.ts";
import { needleRouge1, needleWords } from "./needle.ts";
import { count, retrieval, retrievalChinese } from "./numbers.ts";
import { qaF1, qaF1Chinese } from "./qa_f1.ts";
import { rougeL, rougeLChinese } from "./rouge.ts";
import {
  cleanRulerPrediction,
  stringMatchAll,
  stringMatchPart,
} from "./string_match.ts";

/** A metric with its options resolved. */
export interface ResolvedMetric {
  /** Name in the registry. */
  name: string;
  /** Resolved options; they go into every record. */
  variant: { [key: string]: Json };
  /** The metric itself. */
  score: Metric;
}

/** One entry of the registry. */
export interface MetricDefinition {
  /** One sentence for help texts. */
  about: string;
  /** Names of the options that the metric takes. */
  options: string[];
  /** Checks the options and fills in the defaults. */
  resolve(options: { [key: string]: Json }): ResolvedMetric["variant"];
  /** Builds the metric from resolved options. */
  create(variant: ResolvedMetric["variant"]): Metric;
}

function define<S extends z.ZodRawShape>(
  about: string,
  shape: S,
  create: (options: z.output<z.ZodObject<S>>) => Metric,
): MetricDefinition {
  const schema = z.object(shape).strict();
  return {
    about,
    options: Object.keys(shape),
    resolve: (options) => schema.parse(options) as ResolvedMetric["variant"],
    create: (variant) => create(schema.parse(variant)),
  };
}

/**
 * The text before the first newline once leading newlines are gone; LongBench scores four data sets on it.
 *
 * @param prediction Generated text.
 */
export function firstLine(prediction: string): string {
  return prediction.replace(/^\n+/, "").split("\n")[0] ?? "";
}

/** LongBench's rule: the best of all answers, never below 0. */
function best(
  options: { firstLine: boolean },
  score: (prediction: string, answer: string) => number,
): Metric {
  return (prediction, answers) => {
    const text = options.firstLine ? firstLine(prediction) : prediction;
    return answers.reduce(
      (top, answer) => Math.max(top, score(text, answer)),
      0,
    );
  };
}

const longbench = { firstLine: z.boolean().default(false) };
const rouge = {
  ...longbench,
  depth: z.enum(["unlimited", "python"]).default("unlimited"),
};
const ruler = { clean: z.boolean().default(true) };
const cleaner = (clean: boolean) => clean ? cleanRulerPrediction : String;

/** Name of a metric. */
export type MetricName =
  | "qa_f1"
  | "qa_f1_zh"
  | "rouge"
  | "rouge_zh"
  | "classification"
  | "count"
  | "retrieval"
  | "retrieval_zh"
  | "code_sim"
  | "string_match_all"
  | "string_match_part"
  | "contains"
  | "needle_rouge1"
  | "needle_words";

/**
 * Definitions of all metrics.
 *
 * | option | of | meaning |
 * | --- | --- | --- |
 * | `firstLine` | LongBench's | score only the first line of the prediction |
 * | `depth` | `rouge`, `rouge_zh` | `python` repeats the zeros of the package's recursion limit |
 * | `similarity` | `code_sim` | `indel` (python-Levenshtein installed) or `difflib` (not installed) |
 * | `labels` | `classification` | the label set of the data set, in its order; needed |
 * | `clean` | RULER's | RULER's cleaning of the prediction before matching |
 */
export const METRIC_DEFINITIONS: Readonly<
  Record<MetricName, MetricDefinition>
> = {
  "qa_f1": define(
    "Token F1 of the best answer",
    longbench,
    (options) => best(options, qaF1),
  ),
  "qa_f1_zh": define(
    "Token F1 of the best answer, Chinese words",
    longbench,
    (options) => best(options, qaF1Chinese),
  ),
  rouge: define(
    "ROUGE-L of the Python package rouge",
    rouge,
    (options) => best(options, (p, a) => rougeL(p, a, options.depth)),
  ),
  "rouge_zh": define(
    "ROUGE-L of the Python package rouge, Chinese words",
    rouge,
    (options) => best(options, (p, a) => rougeLChinese(p, a, options.depth)),
  ),
  classification: define(
    "One over the number of labels named, if the right one is among them",
    { ...longbench, labels: z.array(z.string()) },
    (options) => best(options, (p, a) => classification(p, a, options.labels)),
  ),
  count: define(
    "Share of the numbers said that are right",
    longbench,
    (options) => best(options, count),
  ),
  retrieval: define(
    "Share of the numbers said that name the right paragraph",
    longbench,
    (options) => best(options, retrieval),
  ),
  "retrieval_zh": define(
    "Share of the numbers said that name the right paragraph, Chinese answers",
    longbench,
    (options) => best(options, retrievalChinese),
  ),
  "code_sim": define(
    "Similarity of the first line of code",
    {
      ...longbench,
      similarity: z.enum(["indel", "difflib"]).default("indel"),
    },
    (options) => best(options, (p, a) => codeSim(p, a, options.similarity)),
  ),
  "string_match_all": define(
    "RULER: share of the answers that occur",
    ruler,
    ({ clean }) => (p, answers) => stringMatchAll(cleaner(clean)(p), answers),
  ),
  "string_match_part": define(
    "RULER: whether any answer occurs",
    ruler,
    ({ clean }) => (p, answers) => stringMatchPart(cleaner(clean)(p), answers),
  ),
  contains: define(
    "Whether a normalised answer occurs as whole words",
    {},
    () => contains,
  ),
  "needle_rouge1": define(
    "ROUGE-1 with stemming; ten times this is the reference's stored needle score",
    {},
    () => best({ firstLine: false }, needleRouge1),
  ),
  "needle_words": define(
    "Share of the answer's distinct words that occur, as in the reference's heat map",
    {},
    () => best({ firstLine: false }, needleWords),
  ),
};

/** Whether a metric of this name exists. */
export function isMetricName(name: string): name is MetricName {
  return Object.hasOwn(METRIC_DEFINITIONS, name);
}

/**
 * Builds a metric with options.
 *
 * @param name Name in the registry.
 * @param options Options of that metric; what is left out takes its default.
 * @throws RangeError for an unknown name, TypeError for an unknown, missing or wrong option.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { createMetric } from "./mod.ts";
 *
 * const metric = createMetric("code_sim", { similarity: "difflib" });
 * assertEquals(metric.score("return x", ["return y"]), 0.88);
 * assertEquals(metric.variant, { firstLine: false, similarity: "difflib" });
 * ```
 */
export function createMetric(
  name: string,
  options: { [key: string]: Json } = {},
): ResolvedMetric {
  if (!isMetricName(name)) {
    throw new RangeError(
      `Cannot create metric as its name must be one of ${
        Object.keys(METRIC_DEFINITIONS).join(", ")
      }: name is "${name}"`,
    );
  }
  const definition: MetricDefinition = METRIC_DEFINITIONS[name];
  let variant: ResolvedMetric["variant"];
  try {
    variant = definition.resolve(options);
  } catch (error) {
    if (!(error instanceof z.ZodError)) throw error;
    const known = definition.options.join(", ") || "none";
    throw new TypeError(
      `Cannot create metric "${name}" as its options (${known}) must be valid: ${
        z.prettifyError(error)
      }`,
      { cause: error },
    );
  }
  return { name, variant, score: definition.create(variant) };
}

const byName = Object.fromEntries(
  Object.keys(METRIC_DEFINITIONS).map((name) => {
    const metric: Metric = (prediction, answers) =>
      createMetric(name).score(prediction, answers);
    return [name, metric];
  }),
);

/**
 * All metrics with default options. `classification` needs its labels and therefore throws here; build it with
 * {@linkcode createMetric}.
 */
export const METRICS = byName as Readonly<Record<MetricName, Metric>>;
