/**
 * Canonical JSON and content hashes: equal values give equal bytes, so a hash names what was computed and from what.
 *
 * @module
 */
import type { Json } from "../../tasks/types.ts";

/**
 * JSON with sorted keys and without white space (the form of RFC 8785).
 *
 * Numbers are written as JavaScript writes them and keys are sorted by UTF-16 code units.
 *
 * @param value A JSON value. Object fields that are `undefined` are left out.
 * @throws TypeError for anything that JSON cannot hold; the message says where it is.
 */
export function canonicalJson(value: unknown): string {
  return write(value, "$");
}

function write(value: unknown, path: string): string {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number" && Number.isFinite(value)) {
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) {
    const items = value.map((item, i) => write(item, `${path}[${i}]`));
    return `[${items.join(",")}]`;
  }
  if (typeof value === "object" && isPlain(value)) {
    const fields = Object.entries(value)
      .filter(([, field]) => field !== undefined)
      .sort(([a], [b]) => a < b ? -1 : 1)
      .map(([key, field]) =>
        `${JSON.stringify(key)}:${write(field, `${path}.${key}`)}`
      );
    return `{${fields.join(",")}}`;
  }
  throw new TypeError(
    `Cannot write JSON as every value must be null, a boolean, a finite number, a string, an array or a plain object: ${path} is ${
      typeof value === "object" ? value?.constructor?.name : String(value)
    }`,
  );
}

function isPlain(value: object): boolean {
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/**
 * SHA-256 in lower-case hexadecimal.
 *
 * @param data Bytes, or a text that is hashed as UTF-8.
 */
export async function sha256(
  data: string | Uint8Array<ArrayBuffer>,
): Promise<string> {
  const bytes = typeof data === "string"
    ? new TextEncoder().encode(data)
    : data;
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** SHA-256 of the canonical JSON of a value. */
export function contentHash(value: Json): Promise<string> {
  return sha256(canonicalJson(value));
}
