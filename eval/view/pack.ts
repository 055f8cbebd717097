/**
 * A view as text: a JSON object whose large arrays are one deflated block in base64. Bits of a snapshot are stored as
 * what changed since the snapshot before, which is next to nothing.
 *
 * @module
 */
import type { View } from "./types.ts";

/** Version of the form. */
const VERSION = 1;

/** Place of an array in the block. */
interface Place {
  at: number;
  length: number;
}

type Packed<T> = T extends Uint8Array | Uint32Array ? Place
  : T extends readonly (infer E)[] ? Packed<E>[]
  : T extends object ? { [K in keyof T]: Packed<T[K]> }
  : T;

/** The JSON object. */
interface PackedView {
  kvfView: number;
  view: Packed<View>;
  data: string;
}

async function through(
  bytes: Uint8Array<ArrayBuffer>,
  transform: CompressionStream | DecompressionStream,
): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Changes `bits` into its difference to `before`, or back. */
function difference(bits: Uint8Array, before: Uint8Array): Uint8Array {
  return bits.map((byte, i) => byte ^ (before[i] ?? 0));
}

/** Writes a view. */
export async function packView(view: View): Promise<string> {
  const parts: Uint8Array[] = [];
  let size = 0;
  const place = (bytes: Uint8Array): Place => {
    const at = size;
    parts.push(bytes);
    size += bytes.length;
    return { at, length: bytes.length };
  };
  const packed: Packed<View> = {
    ...view,
    scores: place(view.scores),
    configurations: view.configurations.map((one) => {
      let before = new Uint8Array(0);
      return {
        ...one,
        snapshots: one.snapshots.map(({ kept, bytes, ...rest }) => {
          const change = place(difference(kept, before));
          before = kept as Uint8Array<ArrayBuffer>;
          return {
            ...rest,
            kept: change,
            bytes: place(new Uint8Array(Uint32Array.from(bytes).buffer)),
          };
        }),
      };
    }),
    attention: view.attention &&
      { ...view.attention, maps: place(view.attention.maps) },
  };
  const block = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    block.set(part, at);
    at += part.length;
  }
  const deflated = await through(block, new CompressionStream("deflate-raw"));
  const result: PackedView = {
    kvfView: VERSION,
    view: packed,
    data: toBase64(deflated),
  };
  return JSON.stringify(result);
}

/**
 * Reads a view.
 *
 * @throws SyntaxError for other text, RangeError for a view of another version
 */
export async function unpackView(text: string): Promise<View> {
  const parsed = JSON.parse(text) as Partial<PackedView> | null;
  if (parsed?.view === undefined || parsed.data === undefined) {
    throw new SyntaxError(
      `Cannot read a view as the text must hold one: it begins with ${
        JSON.stringify(text.slice(0, 40))
      }`,
    );
  }
  if (parsed.kvfView !== VERSION) {
    throw new RangeError(
      `Cannot read a view as its version must be ${VERSION}: it is ${parsed.kvfView}`,
    );
  }
  const block = await through(
    fromBase64(parsed.data),
    new DecompressionStream("deflate-raw"),
  );
  const take = ({ at, length }: Place) => block.slice(at, at + length);
  const { view } = parsed;
  return {
    ...view,
    scores: take(view.scores),
    configurations: view.configurations.map((one) => {
      let before = new Uint8Array(0);
      return {
        ...one,
        snapshots: one.snapshots.map(({ kept, bytes, ...rest }) => {
          before = difference(take(kept), before) as Uint8Array<ArrayBuffer>;
          return {
            ...rest,
            kept: before,
            bytes: new Uint32Array(take(bytes).buffer),
          };
        }),
      };
    }),
    attention: view.attention &&
      { ...view.attention, maps: take(view.attention.maps) },
  } as View;
}
