/**
 * What is written about every answer and every run: zod schemas, the types that follow from them, and the JSON
 * Schemas published beside this file.
 *
 * @module
 */
import * as z from "zod";
import type { Example, Json } from "../../tasks/types.ts";
import { canonicalJson, contentHash } from "./canonical.ts";

/** Version of the record format. A results folder of another version is refused. */
export const RECORD_SCHEMA_VERSION = 1;

/** Options by name. */
export type JsonObject = { [key: string]: Json };

/** Everything that decides the generated tokens; a record's key is made of it. */
export interface KeyParts {
  /** The model: its folder's name for people, and the hash of configuration, weights and tokenizer. */
  model: { name: string; hash: string };
  /** The example: its id for people, and {@linkcode exampleHash}. */
  example: { id: string; hash: string };
  /** The method with its resolved options, defaults included. */
  method: {
    name: string;
    options: JsonObject;
    /** SHA-256 of the file that defines a method of the user's own. */
    source?: string | undefined;
    /** SHA-256 of the files that options name, by option. */
    files?: { [option: string]: string } | undefined;
  };
  /** How tokens are produced: device, cache type, stop rules, new tokens at most, sampling. */
  generation: JsonObject;
  /** Seed of the run. */
  seed: number;
  /** This program: its commit and the version of the native library's interface. */
  build: { commit: string; abi: number };
}

/** What the cache held. */
export interface CacheFacts {
  /**
   * Rows held after prefill, per layer: one number when all stored heads hold the same, else one per head. See
   * {@linkcode compactRows}.
   */
  rows: (number | number[])[];
  /** Bytes that the method promised after prefill. */
  promisedBytes: number;
  /** Bytes that the page pool held at that moment. */
  residentBytes: number;
  /** Largest number of bytes held during the run. */
  peakBytes: number;
}

/** How long it took; milliseconds. */
export interface TimingFacts {
  /** Prefill of the prompt. */
  prefillMs: number;
  /** Scoring, selection and eviction after prefill. */
  compressMs?: number | undefined;
  /** From the start to the first token. */
  firstTokenMs?: number | undefined;
  /** All decode steps. */
  decodeMs: number;
  /** Configurations that used the same prefill. */
  sharedPrefill?: number | undefined;
  /** Sequences decoded together, at most. */
  batch?: number | undefined;
}

/** Why generation ended. */
export type StopReason = "end_token" | "newline" | "max_new_tokens" | "context";

/** One answer: an example, a configuration, and what came of it. */
export interface EvalRecord extends KeyParts {
  /** {@linkcode RECORD_SCHEMA_VERSION}. */
  schema: typeof RECORD_SCHEMA_VERSION;
  /** {@linkcode recordKey} of this record. */
  key: string;
  /** The task with its resolved options. */
  task: { name: string; options: JsonObject };
  /** Tokens of the prompt as the model saw it. */
  promptTokens: number;
  /** Generated token ids. */
  tokens: number[];
  /** Generated text, as scored. */
  text: string;
  /** Accepted answers. */
  answers: string[];
  /** The metric with its resolved options. */
  metric: { name: string; variant: JsonObject };
  /** Score, 0 to 1. */
  score: number;
  /** Further scores by metric name. */
  scores?: { [metric: string]: number } | undefined;
  /** What the cache held. */
  cache: CacheFacts;
  /** How long it took. */
  timing: TimingFacts;
  /** Why generation ended. */
  stop: StopReason;
  /** Facts of the example for reports: length, depth, ... */
  meta: JsonObject;
  /** Check sum of the line, written by the store; to be deleted after editing by hand. */
  sum?: string | undefined;
}

/** The machine of a run. */
export interface Hardware {
  /** Operating system. */
  os: string;
  /** Instruction set. */
  arch: string;
  /** Processor, in words. */
  cpu: string;
  /** Logical processors. */
  cores: number;
  /** Main memory. */
  memoryBytes: number | null;
  /** Accelerator, in words, if one was used. */
  gpu: string | null;
  /** Its memory. */
  gpuMemoryBytes: number | null;
}

/** Facts about one start of the program; one line per start. */
export interface RunMeta {
  /** {@linkcode RECORD_SCHEMA_VERSION}. */
  schema: typeof RECORD_SCHEMA_VERSION;
  /** Time of the start, UTC, ISO 8601 with `Z`. */
  startedAt: string;
  /** Which of the processes that share the folder, `i/n`. */
  shard: string;
  /** Commit of this program. */
  commit: string;
  /** Whether the working tree differed from the commit; null when that could not be told. */
  dirty: boolean | null;
  /** Versions of deno, v8, typescript, abi and whatever else was involved. */
  versions: { [name: string]: string };
  /** The machine. */
  hardware: Hardware;
  /** Permissions as granted, for instance `read=./data`. */
  permissions: string[];
  /** All options of the run, resolved. */
  options: JsonObject;
  /** SHA-256 of model, data, prompt wording and library. */
  hashes: { [name: string]: string };
}

const hash = z.string().regex(/^[0-9a-f]{64}$/).describe(
  "SHA-256, hexadecimal",
);
const count = z.int().min(0);
const bytes = z.int().min(0).describe("bytes");
const milliseconds = z.number().min(0).describe("milliseconds");
const options = z.record(z.string(), z.json());
const named = z.strictObject({ name: z.string(), options });

/** Schema of {@linkcode EvalRecord}. */
export const EvalRecordSchema: z.ZodType<EvalRecord> = z.strictObject({
  schema: z.literal(RECORD_SCHEMA_VERSION),
  key: hash.describe(
    "content hash of model.hash, example.hash, method, generation, seed and build",
  ),
  model: z.strictObject({
    name: z.string().describe("folder name, for people"),
    hash: hash.describe("content hash of configuration, weights and tokenizer"),
  }),
  example: z.strictObject({
    id: z.string().describe("unique within task, options and seed"),
    hash: hash.describe("content hash of task, its options and the example"),
  }),
  method: named.extend({
    source: hash.optional()
      .describe("of the file that defines a method of the user's own"),
    files: z.record(z.string(), hash).optional()
      .describe("of the files that options name, by option"),
  }).describe("with resolved options, defaults included"),
  generation: options.describe(
    "how tokens were produced: device, cache type, stop rules, new tokens at most, sampling",
  ),
  seed: z.int(),
  build: z.strictObject({
    commit: z.string().describe("commit of this program"),
    abi: z.int().describe("version of the native library's interface"),
  }),
  task: named.describe("with resolved options"),
  promptTokens: count.describe("tokens of the prompt as the model saw it"),
  tokens: z.array(count).describe("generated token ids"),
  text: z.string().describe("generated text, as scored"),
  answers: z.array(z.string()),
  metric: z.strictObject({
    name: z.string(),
    variant: options.describe("resolved options of the metric"),
  }),
  score: z.number().min(0).max(1),
  scores: z.record(z.string(), z.number()).optional()
    .describe("further scores by metric name"),
  cache: z.strictObject({
    rows: z.array(z.union([count, z.array(count)])).describe(
      "rows held after prefill, per layer: one number when all stored heads hold the same, else one per head",
    ),
    promisedBytes: bytes.describe("bytes the method promised after prefill"),
    residentBytes: bytes.describe("bytes the page pool held at that moment"),
    peakBytes: bytes.describe("largest number of bytes held during the run"),
  }),
  timing: z.strictObject({
    prefillMs: milliseconds,
    compressMs: milliseconds.optional(),
    firstTokenMs: milliseconds.optional(),
    decodeMs: milliseconds,
    sharedPrefill: count.optional()
      .describe("configurations that used the same prefill"),
    batch: count.optional().describe("sequences decoded together, at most"),
  }),
  stop: z.enum(["end_token", "newline", "max_new_tokens", "context"])
    .describe("why generation ended"),
  meta: options.describe(
    "facts of the example for reports: length, depth, ...",
  ),
  sum: z.string().regex(/^[0-9a-f]{16}$/).optional().describe(
    "first 16 digits of the SHA-256 of this record's canonical JSON without this field; delete it after editing by hand",
  ),
});

/** Schema of {@linkcode RunMeta}. */
export const RunMetaSchema: z.ZodType<RunMeta> = z.strictObject({
  schema: z.literal(RECORD_SCHEMA_VERSION),
  startedAt: z.iso.datetime().describe("UTC"),
  shard: z.string().regex(/^[1-9]\d*\/[1-9]\d*$/).describe("i/n, from 1/n"),
  commit: z.string(),
  dirty: z.boolean().nullable().describe(
    "whether the working tree differed from the commit; null when that could not be told",
  ),
  versions: z.record(z.string(), z.string())
    .describe("deno, v8, typescript, abi and whatever else was involved"),
  hardware: z.strictObject({
    os: z.string(),
    arch: z.string(),
    cpu: z.string(),
    cores: count,
    memoryBytes: bytes.nullable(),
    gpu: z.string().nullable(),
    gpuMemoryBytes: bytes.nullable(),
  }),
  permissions: z.array(z.string()).describe("as granted, e.g. read=./data"),
  options: options.describe("all options of the run, resolved"),
  hashes: z.record(z.string(), hash)
    .describe("of model, data, prompt wording and library"),
});

/**
 * Checks a value from outside.
 *
 * @throws SyntaxError that lists what does not fit.
 */
export function parseRecord(value: unknown): EvalRecord {
  return parse(EvalRecordSchema, value, "record");
}

/**
 * Checks a value from outside.
 *
 * @throws SyntaxError that lists what does not fit.
 */
export function parseRunMeta(value: unknown): RunMeta {
  return parse(RunMetaSchema, value, "run_meta");
}

function parse<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new SyntaxError(
    `Cannot read ${what} as it must fit the schema: ${
      z.prettifyError(parsed.error)
    }`,
    { cause: parsed.error },
  );
}

/**
 * Key of a record: equal keys mean that the same tokens come out.
 *
 * Names that only serve people (the model's folder name, the example's id) are not part of it.
 */
export function recordKey(parts: KeyParts): Promise<string> {
  const { name, options, source, files } = parts.method;
  return contentHash({
    model: parts.model.hash,
    example: parts.example.hash,
    method: {
      name,
      options,
      ...(source === undefined ? {} : { source }),
      ...(files === undefined ? {} : { files }),
    },
    generation: parts.generation,
    seed: parts.seed,
    build: parts.build,
  });
}

/**
 * Hash of an example in its task; the `example.hash` of records, and what shards are dealt by.
 *
 * @param task Name and resolved options of the task.
 * @param example The example.
 */
export function exampleHash(
  task: { name: string; options: { [key: string]: Json } },
  example: Example,
): Promise<string> {
  return contentHash({
    task: { name: task.name, options: task.options },
    example: { ...example },
  });
}

/**
 * The part of a record that a repeated run must reproduce byte for byte: all but times, the peak of a batch and the
 * check sum.
 */
export function comparableRecord(record: EvalRecord): string {
  const { timing: _timing, sum: _sum, cache, ...rest } = record;
  const { peakBytes: _peak, ...still } = cache;
  return canonicalJson({ ...rest, cache: still });
}

/** Rows per layer and head in the short form of records: one number where all heads of a layer agree. */
export function compactRows(
  rows: readonly (readonly number[])[],
): (number | number[])[] {
  return rows.map((heads) => {
    const [first] = heads;
    return first !== undefined && heads.every((n) => n === first)
      ? first
      : [...heads];
  });
}

/** Rows per layer and head from the short form. */
export function expandRows(
  rows: readonly (number | readonly number[])[],
  heads: number,
): number[][] {
  return rows.map((layer) =>
    typeof layer === "number" ? Array<number>(heads).fill(layer) : [...layer]
  );
}

/** The published JSON Schemas by file name; the files beside this module are written from it. */
export function jsonSchemas(): { [file: string]: Json } {
  return {
    "record.schema.json": z.toJSONSchema(EvalRecordSchema) as Json,
    "run_meta.schema.json": z.toJSONSchema(RunMetaSchema) as Json,
  };
}
