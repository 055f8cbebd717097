/**
 * A fast encoder and decoder for the bundled tokenizer: a piece is looked up in a table, and only a piece that is seen
 * for the first time is worked out.
 *
 * It gives what the tokenizer library gives for `models/needle-6m/tokenizer.json`, special tokens left out; a test
 * compares them. Text that spells a special token is taken as plain text here.
 *
 * @module
 */
import type { TextCodec } from "../../tasks/types.ts";

/**
 * Splits text in pieces: pairs of hexadecimal digits in a UUID, always the same ones wherever it begins; letters; up to
 * two digits; other signs; white space. A space stays with what follows it, and so does a hyphen before letters or such a
 * pair: a token that is the same in every key or UUID would be a place where copies go astray.
 *
 * A pair of a UUID is told by what follows it: the rest of the first group, or an even number of such digits up to the
 * end of a group. Of a word in capitals the first two letters are cut off, so that names of random letters differ in
 * their first token.
 */
export const PIECE_PATTERN = [
  " ?[0-9a-f]{2}(?=[0-9a-f]{6}-[0-9a-f]{4}-)",
  "-?[0-9a-f]{2}(?=(?:[0-9a-f]{2}){0,5}(?:-[0-9a-f]{4}-|-[0-9a-f]{12}|(?![\\p{L}\\p{N}])))",
  " \\p{Lu}{2}(?=\\p{Lu})",
  "[ -]?\\p{L}+",
  " ?\\p{N}{1,2}",
  " ?[^\\s\\p{L}\\p{N}]+",
  "\\s+(?!\\S)",
  "\\s+",
].join("|");

/**
 * The printable character that stands for each byte in byte-level vocabularies: visible Latin-1 characters stand for
 * themselves, the others are moved to U+0100 and up.
 */
export const BYTE_CHARS: readonly string[] = (() => {
  const out: string[] = [];
  let moved = 0;
  for (let byte = 0; byte < 256; byte++) {
    const visible = (byte >= 0x21 && byte <= 0x7e) ||
      (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    out.push(String.fromCharCode(visible ? byte : 0x100 + moved++));
  }
  return out;
})();

/** The part of a `tokenizer.json` that is read. */
export interface TokenizerJson {
  /** Special tokens. */
  "added_tokens": { id: number; content: string; special: boolean }[];
  /** How text is split: the first splitter's pattern is used. */
  "pre_tokenizer": { pretokenizers: { pattern?: { Regex: string } }[] };
  /** The byte-level BPE. */
  model: {
    vocab: { [token: string]: number };
    merges: ([string, string] | string)[];
  };
}

const utf8 = new TextEncoder();

/** Text as byte characters. */
export function byteString(text: string): string {
  let out = "";
  for (const byte of utf8.encode(text)) out += BYTE_CHARS[byte];
  return out;
}

/** The codec. */
export class PieceCodec implements TextCodec {
  #vocab: Map<string, number>;
  #ranks = new Map<string, number>();
  #tokens: string[] = [];
  #special: Set<number>;
  #bytes = new Map(BYTE_CHARS.map((c, i) => [c, i]));
  #known = new Map<string, readonly number[]>();
  #pattern: RegExp;

  /** Takes the parsed `tokenizer.json`. */
  constructor(
    { model, "added_tokens": added, "pre_tokenizer": split }: TokenizerJson,
  ) {
    const pattern = split.pretokenizers[0]?.pattern?.Regex;
    if (pattern === undefined) {
      throw new TypeError(
        "Cannot make the codec as the tokenizer must split by a pattern first",
      );
    }
    this.#pattern = new RegExp(pattern, "gu");
    this.#vocab = new Map(Object.entries(model.vocab));
    for (const [token, id] of this.#vocab) this.#tokens[id] = token;
    model.merges.forEach((merge, rank) =>
      this.#ranks.set(
        typeof merge === "string" ? merge : merge.join(" "),
        rank,
      )
    );
    this.#special = new Set(added.filter((t) => t.special).map((t) => t.id));
  }

  /** @inheritdoc */
  encode(text: string): number[] {
    const out: number[] = [];
    this.#pattern.lastIndex = 0;
    for (
      let match = this.#pattern.exec(text);
      match !== null;
      match = this.#pattern.exec(text)
    ) {
      const piece = match[0];
      let ids = this.#known.get(piece);
      if (ids === undefined) {
        ids = this.#work(piece);
        if (this.#known.size < 200_000) this.#known.set(piece, ids);
      }
      if (ids.length === 1) out.push(ids[0] as number);
      else for (let i = 0; i < ids.length; i++) out.push(ids[i] as number);
    }
    return out;
  }

  /** @inheritdoc */
  decode(ids: number[]): string {
    const bytes: number[] = [];
    for (const id of ids) {
      if (this.#special.has(id)) continue;
      for (const char of this.#tokens[id] ?? "") {
        bytes.push(this.#bytes.get(char) ?? 0x3f);
      }
    }
    return new TextDecoder().decode(new Uint8Array(bytes));
  }

  /** Ids of one piece: the whole piece where it is an entry, else merges in order of rank. */
  #work(piece: string): number[] {
    const whole = byteString(piece);
    const id = this.#vocab.get(whole);
    if (id !== undefined) return [id];
    const parts = Array.from(whole);
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.#ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank !== undefined && rank < best) {
          best = rank;
          at = i;
        }
      }
      if (at < 0) break;
      parts.splice(at, 2, `${parts[at]}${parts[at + 1]}`);
    }
    return parts.map((part) => this.#vocab.get(part) as number);
  }
}
