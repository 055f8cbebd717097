/**
 * The results folder: finished records are found again, new ones are appended so that a kill at any moment costs only
 * what was in flight, and several processes may share the folder.
 *
 * | file | written by | holds |
 * | --- | --- | --- |
 * | `kvf_results.json` | the first process | the version of the format |
 * | `records-<i>-of-<n>.jsonl` | shard i of n alone | one record per line |
 * | `run_meta-<i>-of-<n>.jsonl` | shard i of n alone | one line per start |
 *
 * Permissions: read and write of the results folder; read alone for {@linkcode readRecords} and
 * {@linkcode readRunMeta}.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { join } from "@std/path";
import * as z from "zod";
import { appendLine, readLines } from "./_lines.ts";
import type { AppendFile } from "./_lines.ts";
import { canonicalJson, sha256 } from "./canonical.ts";
import {
  comparableRecord,
  EvalRecordSchema,
  RECORD_SCHEMA_VERSION,
  recordKey,
  RunMetaSchema,
} from "./schema.ts";
import type { EvalRecord, RunMeta } from "./schema.ts";
import { claims, formatShard, WHOLE } from "./shard.ts";
import type { Shard } from "./shard.ts";

const MARKER = "kvf_results.json";
const RECORDS = /^records-\d+-of-\d+\.jsonl$/;
const RUN_META = /^run_meta-\d+-of-\d+\.jsonl$/;

const MarkerSchema = z.object({
  kind: z.literal("kvf-results"),
  schema: z.int(),
});

/** A line that cannot be used; names file and line. */
function brokenLine(path: string, line: number, why: string): SyntaxError {
  return new SyntaxError(
    `Cannot read results as every line must be valid: ${path}:${line}: ${why}`,
  );
}

/** Check sum of a text. Synchronous, because a folder may hold a hundred thousand lines. */
function checkSum(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

/** Canonical JSON of a record without its check sum. */
function withoutSum(record: EvalRecord): string {
  const { sum: _, ...rest } = record;
  return canonicalJson(rest);
}

/** Whether a record is as it was written. Its own line says so most quickly; a reformatted line is written anew. */
function isUnchanged(record: EvalRecord, sum: string, line: string): boolean {
  return checkSum(line.replace(`"sum":"${sum}",`, "")) === sum ||
    checkSum(withoutSum(record)) === sum;
}

function decodeLine<S extends z.ZodType>(
  schema: S,
  path: string,
  line: number,
  bytes: Uint8Array,
): { value: z.output<S>; text: string } {
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    const text = decoder.decode(bytes);
    return { value: schema.parse(JSON.parse(text)), text };
  } catch (error) {
    if (error instanceof z.ZodError) {
      throw brokenLine(path, line, z.prettifyError(error));
    }
    const why = error instanceof Error ? error.message : String(error);
    throw brokenLine(path, line, why);
  }
}

/** A record and where it stands. */
interface Placed {
  record: EvalRecord;
  place: string;
}

/**
 * Records of one file. The torn last line of a stopped or still writing process is left out.
 *
 * @returns Byte offset after the last whole line, when all were taken.
 */
async function* recordsOfFile(
  path: string,
): AsyncGenerator<Placed, number> {
  using file = Deno.openSync(path, { read: true });
  let end = 0;
  for (const { number, start, bytes, ended } of readLines(file)) {
    if (!ended) break;
    const decoded = decodeLine(EvalRecordSchema, path, number, bytes);
    const { value: record, text } = decoded;
    const { sum } = record;
    if (sum === undefined && record.key !== await recordKey(record)) {
      throw brokenLine(path, number, "the key does not belong to the record");
    }
    if (sum !== undefined && !isUnchanged(record, sum, text)) {
      throw brokenLine(
        path,
        number,
        "the record was changed after it was written (delete its sum if that was meant)",
      );
    }
    end = start + bytes.length + 1;
    yield { record, place: `${path}:${number}` };
  }
  return end;
}

function filesOf(folder: string, form: RegExp): string[] {
  return [...Deno.readDirSync(folder)]
    .filter((entry) => form.test(entry.name))
    .map((entry) => join(folder, entry.name))
    .sort();
}

/** Refuses folders of another version; true when the folder is marked. */
function checkMarker(folder: string): boolean {
  const path = join(folder, MARKER);
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    if (filesOf(folder, RECORDS).length === 0) return false;
    throw new SyntaxError(
      `Cannot open results folder as records must come with ${MARKER}: it is missing in "${folder}"`,
    );
  }
  let marker: z.output<typeof MarkerSchema>;
  try {
    marker = MarkerSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new SyntaxError(
      `Cannot open results folder as its marker must be that of a results folder: ${path}`,
      { cause: error },
    );
  }
  if (marker.schema !== RECORD_SCHEMA_VERSION) {
    throw new RangeError(
      `Cannot open results folder as its format must have version ${RECORD_SCHEMA_VERSION}: version is ${marker.schema} in "${path}"`,
    );
  }
  return true;
}

/** Marks the folder. Written aside and renamed, so that no process ever sees half a marker. */
function writeMarker(folder: string): void {
  const aside = join(folder, `.${MARKER}.${crypto.randomUUID()}`);
  const marker = { kind: "kvf-results", schema: RECORD_SCHEMA_VERSION };
  Deno.writeTextFileSync(aside, canonicalJson(marker) + "\n");
  Deno.renameSync(aside, join(folder, MARKER));
}

/**
 * Drops what a stopped writer left of its last line.
 *
 * @param size Bytes in the file.
 * @param whole Bytes up to the end of the last whole line.
 */
function dropTornLine(path: string, size: number, whole: number): void {
  if (whole < size) Deno.truncateSync(path, whole);
}

/** The system did not take what was to be written: a full disk, a quota, a medium that failed. */
export class StorageError extends Error {
  /** Name of the class. */
  override name = "StorageError";
}

/** A file of lines that this process alone appends to. */
class OwnFile implements Disposable {
  readonly path: string;
  readonly #file: AppendFile & Pick<Deno.FsFile, "syncDataSync" | "close">;
  #size: number;
  #broken = false;

  constructor(path: string) {
    const file = Deno.openSync(path, { append: true, create: true });
    this.path = path;
    this.#file = file;
    // Its statSync() would ask for the place that a link leads to.
    this.#size = file.seekSync(0, Deno.SeekMode.End);
  }

  /** Appends lines, each with one write, and waits until they are on the disk. */
  append(lines: string[]): void {
    if (this.#broken) {
      throw new Error(
        `Cannot append as the last write must have succeeded: ${this.path} failed before`,
      );
    }
    try {
      for (const line of lines) {
        this.#size = appendLine(this.#file, this.#size, line);
      }
      this.#file.syncDataSync();
    } catch (error) {
      this.#broken = true;
      throw new StorageError(
        `Cannot append as the system must take the line: ${this.path}: ${
          error instanceof Error ? error.message : error
        }`,
        { cause: error },
      );
    }
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/** Options of {@linkcode RecordStore.open}. */
export interface StoreOptions {
  /** This process among those that share the folder. Default: the only one. */
  shard?: Shard;
}

/**
 * A results folder opened for writing.
 *
 * @example
 * ```ts ignore
 * using store = await RecordStore.open("results", { shard: parseShard("1/2") });
 * for (const work of configurations) {
 *   if (!store.claims(work.example.hash) || store.has(await recordKey(work))) continue;
 *   await store.append(await evaluate(work));
 * }
 * ```
 */
export class RecordStore implements Disposable {
  /** The folder. */
  readonly folder: string;
  /** This process among those that share the folder. */
  readonly shard: Readonly<Shard>;
  readonly #keys: Set<string>;
  readonly #records: OwnFile;
  readonly #runMeta: OwnFile;
  readonly #lock: Deno.FsFile;
  #closed = false;

  private constructor(
    folder: string,
    shard: Shard,
    keys: Set<string>,
    files: { records: OwnFile; runMeta: OwnFile; lock: Deno.FsFile },
  ) {
    this.folder = folder;
    this.shard = shard;
    this.#keys = keys;
    this.#records = files.records;
    this.#runMeta = files.runMeta;
    this.#lock = files.lock;
  }

  /**
   * Opens a results folder, made if it is not there, and learns which keys are finished.
   *
   * A torn last line in this shard's own files, left by a writer that was killed, is cut off; in the files of other
   * shards it is passed over, since their writers may be at work.
   *
   * @param folder The folder.
   * @param options Which shard this process is.
   * @throws RangeError for a folder of another version, SyntaxError with file and line for a broken record,
   * `Deno.errors.Busy` when another process writes the same shard.
   */
  static async open(
    folder: string,
    options: StoreOptions = {},
  ): Promise<RecordStore> {
    const shard = options.shard ?? WHOLE;
    Deno.mkdirSync(folder, { recursive: true });
    if (!checkMarker(folder)) writeMarker(folder);
    const suffix = `${shard.index}-of-${shard.count}.jsonl`;
    const recordsPath = join(folder, `records-${suffix}`);
    const runMetaPath = join(folder, `run_meta-${suffix}`);

    using undo = new DisposableStack();
    const lock = undo.use(
      Deno.openSync(recordsPath, { append: true, create: true }),
    );
    if (!lock.tryLockSync(true)) {
      throw new Deno.errors.Busy(
        `Cannot open results folder as one process at a time may write a shard: shard ${
          formatShard(shard)
        } of "${folder}" is being written`,
      );
    }
    const keys = new Set<string>();
    for (const path of filesOf(folder, RECORDS)) {
      const size = Deno.statSync(path).size;
      const records = recordsOfFile(path);
      let next = await records.next();
      for (; !next.done; next = await records.next()) {
        keys.add(next.value.record.key);
      }
      if (path === recordsPath) dropTornLine(path, size, next.value);
    }
    const records = undo.use(new OwnFile(recordsPath));
    const runMeta = undo.use(openRunMeta(runMetaPath));
    undo.move();
    return new RecordStore(folder, shard, keys, { records, runMeta, lock });
  }

  /** Number of finished keys in the folder, as far as this process knows. */
  get size(): number {
    return this.#keys.size;
  }

  /** Whether the record of this key is finished. */
  has(key: string): boolean {
    return this.#keys.has(key);
  }

  /** Whether this process is the one to work on an example; see {@linkcode claims}. */
  claims(exampleHash: string): boolean {
    return claims(this.shard, exampleHash);
  }

  /**
   * Appends records and waits until they are on the disk: one write per record, one wait for all of them.
   *
   * @param records Records; `sum` is filled in.
   * @throws TypeError when a record does not fit the schema, has the wrong key or is finished already; nothing is
   * written then. Error with file and cause when the system refuses the write; records written before stay whole.
   */
  async append(...records: EvalRecord[]): Promise<void> {
    this.#check();
    const lines: string[] = [];
    const keys = new Set<string>();
    for (const record of records) {
      const parsed = EvalRecordSchema.safeParse(record);
      if (!parsed.success) {
        throw new TypeError(
          `Cannot append record as it must fit the schema: ${
            z.prettifyError(parsed.error)
          }`,
        );
      }
      const { key } = parsed.data;
      if (key !== await recordKey(parsed.data)) {
        throw new TypeError(
          `Cannot append record as its key must be that of its parts: key is ${key}`,
        );
      }
      if (keys.has(key)) throw alreadyFinished(key);
      keys.add(key);
      const sum = checkSum(withoutSum(parsed.data));
      lines.push(canonicalJson({ ...parsed.data, sum }));
    }
    this.#check();
    for (const key of keys) if (this.has(key)) throw alreadyFinished(key);
    this.#records.append(lines);
    for (const key of keys) this.#keys.add(key);
  }

  /**
   * Writes down the facts of this start.
   *
   * @throws TypeError when they do not fit the schema.
   */
  appendRunMeta(meta: RunMeta): void {
    this.#check();
    const parsed = RunMetaSchema.safeParse(meta);
    if (!parsed.success) {
      throw new TypeError(
        `Cannot append run_meta as it must fit the schema: ${
          z.prettifyError(parsed.error)
        }`,
      );
    }
    this.#runMeta.append([canonicalJson(parsed.data)]);
  }

  #check(): void {
    if (!this.#closed) return;
    throw new TypeError(
      `Cannot use RecordStore as it must be open: "${this.folder}" is closed`,
    );
  }

  /** Closes the files. A second call does nothing. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#records[Symbol.dispose]();
    this.#runMeta[Symbol.dispose]();
    this.#lock.close();
  }
}

function alreadyFinished(key: string): TypeError {
  return new TypeError(
    `Cannot append record as its key must not be finished yet: key is ${key}`,
  );
}

function openRunMeta(path: string): OwnFile {
  const file = new OwnFile(path);
  let whole = 0;
  {
    using read = Deno.openSync(path, { read: true });
    for (const { start, bytes, ended } of readLines(read)) {
      if (ended) whole = start + bytes.length + 1;
    }
  }
  const size = Deno.statSync(path).size;
  if (whole === size) return file;
  file[Symbol.dispose]();
  dropTornLine(path, size, whole);
  return new OwnFile(path);
}

/**
 * All finished records of a folder, in the order of files and lines. A record that two shards hold appears once.
 *
 * @param folder A results folder; it is only read, and other processes may be writing to it.
 * @throws As {@linkcode RecordStore.open}; also SyntaxError when two records of one key differ in more than time.
 */
export async function* readRecords(folder: string): AsyncGenerator<EvalRecord> {
  checkMarker(folder);
  const seen = new Map<string, { hash: string; place: string }>();
  for (const path of filesOf(folder, RECORDS)) {
    for await (const { record, place } of recordsOfFile(path)) {
      const hash = await sha256(comparableRecord(record));
      const earlier = seen.get(record.key);
      if (earlier === undefined) {
        seen.set(record.key, { hash, place });
        yield record;
      } else if (earlier.hash !== hash) {
        throw new SyntaxError(
          `Cannot read results as records of one key must agree: ${place} differs from ${earlier.place}`,
        );
      }
    }
  }
}

/** All starts recorded in a folder, in the order of files and lines. */
export function* readRunMeta(folder: string): Generator<RunMeta> {
  checkMarker(folder);
  for (const path of filesOf(folder, RUN_META)) {
    using file = Deno.openSync(path, { read: true });
    for (const { number, bytes, ended } of readLines(file)) {
      if (!ended) break;
      yield decodeLine(RunMetaSchema, path, number, bytes).value;
    }
  }
}
