/**
 * Files of lines: reading with line numbers and byte offsets, and appending so that a line is there whole or not at
 * all.
 *
 * @module
 */

/** One line of a file. */
export interface Line {
  /** Line number, from 1. */
  number: number;
  /** Offset of its first byte. */
  start: number;
  /** Its bytes without the newline. */
  bytes: Uint8Array;
  /** Whether a newline follows; false only for the torn last line of a writer that was stopped. */
  ended: boolean;
}

const CHUNK = 1 << 20;
const NEWLINE = 0x0a;

/** Lines of an open file from its current position, which must be its start. */
export function* readLines(
  file: Pick<Deno.FsFile, "readSync">,
): Generator<Line> {
  const chunk = new Uint8Array(CHUNK);
  let parts: Uint8Array[] = [];
  let number = 1;
  let start = 0;
  const line = (ended: boolean): Line => {
    const size = parts.reduce((sum, part) => sum + part.length, 0);
    const bytes = new Uint8Array(size);
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    parts = [];
    const read = { number, start, bytes, ended };
    number++;
    start += size + 1;
    return read;
  };
  for (;;) {
    const n = file.readSync(chunk);
    if (n === null) break;
    let from = 0;
    for (let end = 0; end < n; end++) {
      if (chunk[end] !== NEWLINE) continue;
      parts.push(chunk.slice(from, end));
      from = end + 1;
      yield line(true);
    }
    if (from < n) parts.push(chunk.slice(from, n));
  }
  if (parts.length > 0) yield line(false);
}

/** What {@linkcode appendLine} needs of a file that was opened for appending. */
export type AppendFile = Pick<Deno.FsFile, "writeSync" | "truncateSync">;

/**
 * Appends a line with one write. When the system takes only part of it (a full disk, a quota), the file is cut back to
 * where it was before the error is thrown, so that the lines before stay readable.
 *
 * @param file Opened for appending.
 * @param size Bytes in the file now.
 * @param text The line without its newline.
 * @returns Bytes in the file afterwards.
 */
export function appendLine(
  file: AppendFile,
  size: number,
  text: string,
): number {
  const bytes = new TextEncoder().encode(text + "\n");
  let written = 0;
  try {
    while (written < bytes.length) {
      const n = file.writeSync(bytes.subarray(written));
      if (n === 0) throw new Error("The system took no bytes");
      written += n;
    }
  } catch (error) {
    try {
      if (written > 0) file.truncateSync(size);
    } catch {
      // The next start cuts the torn line off; the reason to report is the failed write.
    }
    throw error;
  }
  return size + written;
}
