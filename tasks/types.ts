/**
 * The contract of benchmark tasks. A task owns its examples, its prompt wording and the choice of its metric. It knows
 * nothing of models, caches or methods: it is given a tokenizer to size prompts with, and yields examples.
 *
 * @module
 */

/** What a task needs of a tokenizer: sizes and cuts are counted in its tokens, without special tokens. */
export interface TextCodec {
  /** Token ids of the text, no special tokens added. */
  encode(text: string): number[];
  /** Text of the ids, special tokens left out. */
  decode(ids: number[]): string;
}

/** A JSON value. */
export type Json =
  | null
  | boolean
  | number
  | string
  | Json[]
  | { [key: string]: Json };

/** One question with everything that is needed to ask and to score it. */
export interface Example {
  /** Unique within task, options and seed; stable from run to run. */
  id: string;
  /** What the user says: context and question. Chat models get it as the user's turn. */
  prompt: string;
  /** How the answer begins; appended to the prompt (plain models) or put at the start of the assistant's turn. */
  answerPrefix: string;
  /** Accepted answers; the metric says how they are combined. */
  answers: string[];
  /** New tokens to generate at most. */
  maxNewTokens: number;
  /** Generation ends before the first newline when true. */
  stopAtNewline: boolean;
  /** True where the prompt is a text to be continued, which no chat form may surround. */
  completion?: boolean;
  /** Facts for reports: length in tokens, depth in percent, the needle's text, ... */
  meta: { [key: string]: Json };
}

/** Scores a prediction against the accepted answers of its example; 0 to 1. */
export type Metric = (prediction: string, answers: string[]) => number;

/** Options as a caller gave them, for {@linkcode Task.recipe}: what is missing stays missing. */
export function givenOptions(options: object): { [key: string]: Json } {
  return Object.fromEntries(
    Object.entries(options).filter(([, value]) => value !== undefined),
  );
}

/** A benchmark task with its options resolved. */
export interface Task {
  /** Name in the registry, for instance `niah_multikey_1`. */
  name: string;
  /** Name of the metric in `eval/metrics`. */
  metric: string;
  /** Options of the metric; its defaults where missing. */
  metricOptions?: { [key: string]: Json };
  /** Further scores for every record, by metric name; `answers` gives what they are held against. */
  scores?: readonly {
    metric: string;
    answers(example: Example): string[];
  }[];
  /**
   * Options that decide what the examples are, as resolved; they go into every record. How many examples there are is
   * not among them, so that a longer run goes on where a shorter one ended.
   */
  options: { [key: string]: Json };
  /** What `createTask` makes this task of again: name and options as given, with the paths of the user's files. */
  recipe: { name: string; options: { [key: string]: Json } };
  /** Examples. */
  count: number;
  /** The examples, generated lazily and deterministically. */
  examples(codec: TextCodec): Iterable<Example>;
}
