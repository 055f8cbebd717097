/**
 * Codecs for tests of tasks: the bundled model's tokenizer, and one token per byte.
 *
 * @module
 */
import { PieceCodec, type TokenizerJson } from "../../models/train/codec.ts";
import type { TextCodec } from "../../tasks/types.ts";

/** The bundled model's tokenizer. */
export const bundledCodec: TextCodec = new PieceCodec(
  JSON.parse(
    Deno.readTextFileSync(
      new URL("../../models/needle-6m/tokenizer.json", import.meta.url),
    ),
  ) as TokenizerJson,
);

/** One token per UTF-8 byte: a tokenizer that shares nothing with the bundled one. */
export const byteCodec: TextCodec = {
  encode: (text) => [...new TextEncoder().encode(text)],
  decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids)),
};
