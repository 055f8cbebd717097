/**
 * The index of a git checkout: which files it tracks, and how they looked when git saw them last.
 *
 * @module
 */

/** One tracked file. */
export interface IndexEntry {
  /** Path from the checkout's root. */
  path: string;
  /** Size in bytes, modulo 2^32. */
  size: number;
  /** Time of the last change, whole seconds. */
  mtimeSeconds: number;
  /** SHA-1 of the content. */
  hash: string;
}

/** Flag of entries that have a second flag word (version 3). */
const EXTENDED = 0x4000;
/** File type bits of a plain file. */
const REGULAR = 0o100000;

/**
 * Reads an index of version 2 or 3 (git's `gitformat-index`); plain files only.
 *
 * @throws RangeError for another version or a file that ends too soon.
 */
export function readIndex(bytes: Uint8Array<ArrayBuffer>): IndexEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = view.getUint32(4);
  if (view.getUint32(0) !== 0x44495243 || (version !== 2 && version !== 3)) {
    throw new RangeError(
      `Cannot read the index as its version must be 2 or 3: version is ${version}`,
    );
  }
  const decoder = new TextDecoder();
  const entries: IndexEntry[] = [];
  let at = 12;
  for (let left = view.getUint32(8); left > 0; left--) {
    const mode = view.getUint32(at + 24);
    const extended = (view.getUint16(at + 60) & EXTENDED) !== 0;
    const name = at + (extended ? 64 : 62);
    const end = bytes.indexOf(0, name);
    if ((mode & 0o170000) === REGULAR) {
      entries.push({
        path: decoder.decode(bytes.subarray(name, end)),
        size: view.getUint32(at + 36),
        mtimeSeconds: view.getUint32(at + 8),
        hash: bytes.slice(at + 40, at + 60).toHex(),
      });
    }
    // Entries are padded with one to eight zeroes to a multiple of eight bytes.
    at += Math.ceil((end - at + 1) / 8) * 8;
  }
  return entries;
}
