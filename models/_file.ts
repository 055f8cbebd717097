/**
 * Reading small files of a model folder with bounds, and errors that name the file and the field.
 *
 * @module
 */
import type { z } from "zod";

/** A value as it appears in an error message: JSON, cut to a readable length. */
export function show(value: unknown): string {
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    text = String(value);
  }
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** The error for content that does not parse. */
export function malformed(
  file: string,
  rule: string,
  value?: unknown,
  cause?: unknown,
): SyntaxError {
  const shown = value === undefined ? "" : `: ${show(value)}`;
  return new SyntaxError(
    `Cannot read "${file}" as ${rule}${shown}`,
    cause === undefined ? undefined : { cause },
  );
}

/** The error for content that is well formed, but outside of what the runtime does. */
export function unsupported(
  file: string,
  rule: string,
  value: unknown,
): RangeError {
  return new RangeError(`Cannot use "${file}" as ${rule}: ${show(value)}`);
}

/** Message of anything that was thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Reads a whole file of at most `maxBytes` bytes. */
export function readBounded(path: string, maxBytes: number): Uint8Array {
  const { size, isFile } = Deno.statSync(path);
  if (!isFile) throw malformed(path, "it must be a file");
  if (size > maxBytes) {
    throw malformed(path, `it must have at most ${maxBytes} bytes`, size);
  }
  return Deno.readFileSync(path);
}

/** Whether a file is there. Refused permissions are passed on. */
export function fileExists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Decodes UTF-8 strictly. */
export function decodeUtf8(bytes: Uint8Array, file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw malformed(file, "it must be UTF-8", undefined, error);
  }
}

/** Parses JSON; the message names the file. */
function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    // A text that nests too deeply is a RangeError of the parser; for us it is one more text that does not parse.
    throw malformed(
      file,
      `it must be JSON (${reason(error)})`,
      undefined,
      error,
    );
  }
}

/** Whether a value is a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Parses JSON that must be an object. */
export function parseJsonObject(
  text: string,
  file: string,
): Record<string, unknown> {
  const value = parseJson(text, file);
  if (!isRecord(value)) throw malformed(file, "it must be an object", value);
  return value;
}

/** Checks a value against a schema; the first violation becomes the error. */
export function check<T>(
  schema: z.ZodType<T>,
  value: unknown,
  file: string,
): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const path = issue?.path ?? [];
  let at: unknown = value;
  for (const key of path) {
    at = isRecord(at) || Array.isArray(at)
      ? (at as Record<PropertyKey, unknown>)[key]
      : undefined;
  }
  throw malformed(
    file,
    `field "${path.join(".")}" must be valid (${
      issue?.message ?? "it is not"
    })`,
    at === undefined ? "missing" : at,
    result.error,
  );
}

/** Edits between two strings: insertions, deletions and exchanges. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(
        row[j]! + 1,
        next[j - 1]! + 1,
        row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1),
      ));
    }
    row = next;
  }
  return row[b.length]!;
}

/** The names, those most like `name` first. */
export function nearestFirst(name: string, names: readonly string[]): string[] {
  const short = name.slice(0, 200);
  return names.map((n) => ({
    n,
    d: distance(short.toLowerCase(), n.toLowerCase()),
  }))
    .sort((a, b) => a.d - b.d || (a.n < b.n ? -1 : 1)).map(({ n }) => n);
}
