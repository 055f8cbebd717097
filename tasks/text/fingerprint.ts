/**
 * Fingerprints of texts and files, for records.
 *
 * @module
 */
import { createHash } from "node:crypto";

/** SHA-256 of a file's bytes. */
export function fingerprintBytes(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/**
 * A 64-bit FNV-1a hash over the UTF-16 units of texts, with how many there are: enough to tell two haystacks apart, not
 * for secrets.
 */
export function fingerprint(texts: readonly string[]): string {
  let low = 0x84222325;
  let high = 0xcbf29ce4;
  const add = (unit: number): void => {
    low = (low ^ unit) >>> 0;
    // Times 2^40 + 0x1b3, modulo 2^64.
    const product = low * 0x1b3;
    high = (Math.imul(high, 0x1b3) + Math.floor(product / 0x100000000) +
      (low << 8)) >>> 0;
    low = product >>> 0;
  };
  for (const text of texts) {
    for (let i = 0; i < text.length; i++) add(text.charCodeAt(i));
    add(0x10000);
  }
  const hex = (n: number): string => n.toString(16).padStart(8, "0");
  return `fnv1a64:${hex(high)}${hex(low)}:${texts.length}`;
}
