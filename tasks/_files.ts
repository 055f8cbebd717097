/**
 * Data files of the user: text, JSON, lines of JSON, folders and zip archives. Errors name the file and, where there are
 * lines, the line.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { unzipSync } from "fflate";
import type { z } from "zod";

/** A file that was read. */
export interface DataFile {
  /** Where it is, for errors; a file of an archive has the archive's path before it. */
  path: string;
  /** Its bytes. */
  bytes: Uint8Array;
}

/** The error for a broken file. */
function broken(place: string, rule: string, cause?: unknown): SyntaxError {
  return new SyntaxError(
    `Cannot read data as ${rule}: ${place}`,
    cause === undefined ? undefined : { cause },
  );
}

/** Reads a file. */
export function readDataFile(path: string): DataFile {
  return { path, bytes: Deno.readFileSync(path) };
}

/** Offsets of the lines of a file, newlines left out. */
function* lines(bytes: Uint8Array): Generator<Uint8Array> {
  let from = 0;
  while (from < bytes.length) {
    const found = bytes.indexOf(0x0a, from);
    const end = found < 0 ? bytes.length : found;
    yield bytes.subarray(from, end);
    from = end + 1;
  }
}

/**
 * Text of a file, which must be UTF-8; a byte order mark is dropped.
 *
 * @throws {SyntaxError} It is not UTF-8; the message names the first such line.
 */
export function textOf({ path, bytes }: DataFile): string {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    let number = 0;
    for (const line of lines(bytes)) {
      number++;
      try {
        decoder.decode(line);
      } catch {
        break;
      }
    }
    throw broken(`${path}:${number}`, "it must be UTF-8", cause);
  }
}

/**
 * A file that is one JSON document.
 *
 * @throws {SyntaxError} It is not JSON or not of the shape.
 */
export function jsonOf<S extends z.ZodType>(
  file: DataFile,
  schema: S,
): z.output<S> {
  return parse(textOf(file), file.path, schema);
}

/**
 * A file with one JSON value on each line; empty lines are passed over.
 *
 * @throws {SyntaxError} A line is not JSON or not of the shape, or there is none.
 */
export function jsonLinesOf<S extends z.ZodType>(
  file: DataFile,
  schema: S,
): z.output<S>[] {
  // Not a split at all line ends: JSON strings may hold U+2028 as it is.
  const found = textOf(file).split("\n").flatMap((line, i) =>
    line.trim() === "" ? [] : [parse(line, `${file.path}:${i + 1}`, schema)]
  );
  if (found.length === 0) {
    throw broken(file.path, "it must hold at least one record");
  }
  return found;
}

function parse<S extends z.ZodType>(
  text: string,
  place: string,
  schema: S,
): z.output<S> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw broken(place, `it must be JSON (${why})`, cause);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue?.path.join(".") ?? "";
  throw broken(
    place,
    `${field === "" ? "the record" : `field "${field}"`} must be valid (${
      issue?.message ?? "it is not"
    })`,
    result.error,
  );
}

/**
 * A file of a folder or of a zip archive by its name: at the top, in a subfolder `data`, or anywhere in an archive.
 *
 * @param path The folder or the archive.
 * @param name The file's name.
 * @throws {Deno.errors.NotFound} It is not there.
 */
export function findDataFile(path: string, name: string): DataFile {
  if (Deno.statSync(path).isDirectory) {
    for (const file of [join(path, name), join(path, "data", name)]) {
      try {
        return readDataFile(file);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
    throw new Deno.errors.NotFound(
      `Cannot find data as the folder must hold "${name}": "${path}"`,
    );
  }
  let entries: Record<string, Uint8Array>;
  try {
    entries = unzipSync(Deno.readFileSync(path), {
      // Archives made on a Mac have a shadow of every file.
      filter: (entry) =>
        basename(entry.name) === name && !entry.name.startsWith("__MACOSX"),
    });
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw broken(path, `it must be a folder or a zip archive (${why})`, cause);
  }
  const [found, second] = Object.entries(entries);
  if (found === undefined) {
    throw new Deno.errors.NotFound(
      `Cannot find data as the archive must hold "${name}": "${path}"`,
    );
  }
  if (second !== undefined) {
    throw broken(
      path,
      `the archive must hold "${name}" once (it holds "${found[0]}" and "${
        second[0]
      }")`,
    );
  }
  return { path: `${path}/${found[0]}`, bytes: found[1] };
}

/**
 * The `.txt` files of a folder in the order of their names.
 *
 * @throws {RangeError} There is none.
 */
export function readTexts(folder: string): string[] {
  const names = [...Deno.readDirSync(folder)]
    .filter((entry) => entry.isFile && entry.name.endsWith(".txt"))
    .map((entry) => entry.name).sort();
  if (names.length === 0) {
    throw new RangeError(
      `Cannot use a haystack as the folder must hold .txt files: "${folder}"`,
    );
  }
  return names.map((name) => textOf(readDataFile(join(folder, name))));
}
