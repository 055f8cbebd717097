/**
 * RULER records that were generated elsewhere: by NVIDIA/RULER or as shipped with KVCache-Factory.
 *
 * @module
 */
import { join } from "@std/path";
import { z } from "zod";
import { jsonLinesOf, readDataFile } from "../_files.ts";
import { fingerprintBytes } from "../text/fingerprint.ts";

/** One record. In older files the input ends with the beginning of the answer; newer ones keep that apart. */
export const RULER_RECORD_SCHEMA = z.object({
  index: z.int().min(0),
  input: z.string().min(1),
  outputs: z.array(z.string()).min(1),
  length: z.int().min(0),
  answer_prefix: z.string().default(""),
});

/** One record. */
export type RulerRecord = z.output<typeof RULER_RECORD_SCHEMA>;

/** Records of a task. */
export interface RulerFile {
  /** In file order. */
  records: RulerRecord[];
  /** Fingerprint of the file. */
  fingerprint: string;
}

/**
 * Reads the records of a task: `<length>/<task>.jsonl`, `<task>.jsonl` or `<task>/validation.jsonl` in the folder,
 * whichever comes first.
 *
 * @throws {Deno.errors.NotFound} There is none of them.
 * @throws {SyntaxError} The file is broken; the message names it and the line.
 */
export function readRuler(
  folder: string,
  length: number,
  task: string,
): RulerFile {
  const paths = [
    join(folder, String(length), `${task}.jsonl`),
    join(folder, `${task}.jsonl`),
    join(folder, task, "validation.jsonl"),
  ];
  for (const path of paths) {
    try {
      const file = readDataFile(path);
      return {
        records: jsonLinesOf(file, RULER_RECORD_SCHEMA),
        fingerprint: fingerprintBytes(file.bytes),
      };
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  throw new Deno.errors.NotFound(
    `Cannot find RULER records as one of these files must be there: ${
      paths.join(", ")
    }`,
  );
}
