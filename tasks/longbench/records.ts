/**
 * LongBench's own files: records, prompts, answer lengths.
 *
 * @module
 */
import { z } from "zod";
import { findDataFile, jsonLinesOf, jsonOf, readDataFile } from "../_files.ts";
import { fingerprintBytes } from "../text/fingerprint.ts";

/** One record, as the benchmark publishes it. */
export const LONGBENCH_RECORD_SCHEMA = z.object({
  /** Question, query or instruction; may be empty. */
  input: z.string(),
  /** The long text. */
  context: z.string(),
  /** Accepted answers. */
  answers: z.array(z.string()).min(1),
  /** Words (characters in Chinese) of input, context and answers. */
  length: z.int().min(0),
  /** Data set. */
  dataset: z.string(),
  /** Language, natural or of the program. */
  language: z.string(),
  /** Labels; only for classification. */
  all_classes: z.array(z.string()).nullable(),
  /** Name of the record. */
  _id: z.string(),
});

/** One record. */
export type LongBenchRecord = z.output<typeof LONGBENCH_RECORD_SCHEMA>;

/** Records of a data set. */
export interface LongBenchFile {
  /** In file order. */
  records: LongBenchRecord[];
  /** Fingerprint of the file. */
  fingerprint: string;
}

/**
 * Reads a data set from the user's download.
 *
 * @param data Folder of JSONL files or the official zip archive.
 * @param name Name of the file without its ending, for instance `hotpotqa_e`.
 * @throws {Deno.errors.NotFound} There is no such file.
 * @throws {SyntaxError} It is broken; the message names file and line.
 */
export function readLongBench(data: string, name: string): LongBenchFile {
  const file = findDataFile(data, `${name}.jsonl`);
  return {
    records: jsonLinesOf(file, LONGBENCH_RECORD_SCHEMA),
    fingerprint: fingerprintBytes(file.bytes),
  };
}

/**
 * Reads one entry of a file such as the official `dataset2prompt.json` and `dataset2maxlen.json`.
 *
 * @throws {SyntaxError} The file is broken or lacks the entry.
 */
export function readEntry<S extends z.ZodType>(
  path: string,
  dataset: string,
  schema: S,
): z.output<S> {
  const entries: Record<string, unknown> = jsonOf(
    readDataFile(path),
    z.looseObject({ [dataset]: schema }),
  );
  return entries[dataset] as z.output<S>;
}
