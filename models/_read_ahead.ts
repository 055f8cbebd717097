/**
 * Reads rows of tensors ahead: several reads run at a time, on threads of the runtime, each into a part of one buffer, and
 * their rows come out in order. One read after the other copies a file from the system's cache at the speed of one core.
 *
 * @module
 */
import {
  endedEarly,
  openTensors,
  type RowPiece,
  type SafetensorsHeader,
  type TensorChunk,
} from "./safetensors.ts";

/** A part of the buffer, the file that it reads and what it is reading. */
interface Part {
  room: Uint8Array<ArrayBuffer>;
  header?: SafetensorsHeader;
  handle?: Deno.FsFile;
  reading?: { piece: RowPiece; done: Promise<void> };
}

/**
 * Reads pieces in order, up to `parts` of them ahead. When the loop is left, it waits for the reads that still run and
 * closes the files.
 *
 * @param pieces What to read, each piece of at most a part of the buffer.
 * @param buffer The one buffer.
 * @param parts Parts of it.
 * @returns Chunks; their `data` is overwritten when the next one is asked for.
 * @throws {SyntaxError} A file changed since its header was read.
 */
export async function* readAhead(
  pieces: Iterator<RowPiece>,
  buffer: Uint8Array<ArrayBuffer>,
  parts: number,
): AsyncGenerator<TensorChunk, void, void> {
  const size = Math.floor(buffer.length / parts);
  const ring = Array.from({ length: parts }, (_, i): Part => ({
    room: buffer.subarray(i * size, (i + 1) * size),
  }));
  try {
    for (const part of ring) start(part, pieces);
    for (let i = 0;; i++) {
      const part = ring[i % parts]!;
      if (part.reading === undefined) return;
      const { piece, done } = part.reading;
      await done;
      const { tensor, firstRow, rowCount, bytes } = piece;
      yield { tensor, firstRow, rowCount, data: part.room.subarray(0, bytes) };
      start(part, pieces);
    }
  } finally {
    await Promise.allSettled(ring.map(({ reading }) => reading?.done));
    for (const { handle } of ring) handle?.close();
  }
}

/** Begins to read the next piece, if there is one. */
function start(part: Part, pieces: Iterator<RowPiece>): void {
  delete part.reading;
  const { value: piece } = pieces.next();
  if (!piece) return;
  const done = read(part, piece);
  done.catch(() => {}); // It is thrown when the piece's turn comes.
  part.reading = { piece, done };
}

async function read(part: Part, piece: RowPiece): Promise<void> {
  const { header, tensor, start, bytes } = piece;
  if (part.header !== header || part.handle === undefined) {
    part.handle?.close();
    delete part.handle;
    part.handle = openTensors(header);
    part.header = header;
  }
  const target = part.room.subarray(0, bytes);
  part.handle.seekSync(start, Deno.SeekMode.Start);
  for (let done = 0; done < bytes;) {
    const n = await part.handle.read(target.subarray(done));
    if (n === null || n === 0) throw endedEarly(header.file, tensor);
    done += n;
  }
}
