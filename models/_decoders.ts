/**
 * Incremental decoders: tokens in, text out, never half a character.
 *
 * @module
 */
import { isRecord } from "./_file.ts";
import type { PieceDecoder } from "./token_stream.ts";

/** Byte of each character of the byte-level alphabet: printable ones stand for themselves, the others follow 255. */
const BYTE_OF: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) ||
      (byte >= 161 && byte <= 172) || byte >= 174;
    map.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return map;
})();

const utf8 = new TextEncoder();

function strictTextDecoder(): TextDecoder {
  return new TextDecoder("utf-8", { ignoreBOM: true });
}

/** Byte-level BPE: every character of a token is a byte. */
export class ByteLevelDecoder implements PieceDecoder {
  #text = strictTextDecoder();

  /** Takes one token. */
  push(token: string): string {
    const bytes = new Uint8Array(token.length);
    for (let i = 0; i < token.length; i++) {
      const byte = BYTE_OF.get(token[i]!);
      // An added token may hold characters outside of the alphabet; it then stands for itself.
      if (byte === undefined) {
        return this.#text.decode(utf8.encode(token), { stream: true });
      }
      bytes[i] = byte;
    }
    return this.#text.decode(bytes, { stream: true });
  }

  /** Ends the text. */
  flush(): string {
    return this.#text.decode();
  }
}

/** Exchanges and cuts of a byte-fallback decoder. */
export interface FallbackSteps {
  /** Texts to exchange in each token. */
  replace: readonly [from: string, to: string][];
  /** Character to cut at the beginning of the text. */
  strip: string;
  /** How many of them at most. */
  stripCount: number;
}

/** BPE with byte fallback: tokens `<0xNN>` are bytes, all others are text. */
export class ByteFallbackDecoder implements PieceDecoder {
  #steps: FallbackSteps;
  #toStrip: number;
  #run: number[] = [];
  #live: boolean;

  /**
   * @param steps Exchanges and cuts.
   * @param live Give out characters as soon as they are complete. Otherwise a run of bytes is decoded when it ends: as a
   * whole, or with a replacement character for each byte where it is not UTF-8, which is what the original does.
   */
  constructor(steps: FallbackSteps, live: boolean) {
    this.#steps = steps;
    this.#toStrip = steps.stripCount;
    this.#live = live;
  }

  /** Takes one token. */
  push(token: string): string {
    let text = token;
    for (const [from, to] of this.#steps.replace) {
      text = text.replaceAll(from, to);
    }
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(text);
    if (byte) {
      this.#run.push(parseInt(byte[1]!, 16));
      return this.#live ? this.#strip(this.#complete()) : "";
    }
    return this.#strip(this.#endRun() + text);
  }

  /** Ends the text. */
  flush(): string {
    return this.#strip(this.#endRun());
  }

  #strip(text: string): string {
    if (this.#toStrip === 0 || text === "") return text;
    let cut = 0;
    while (cut < this.#toStrip && text[cut] === this.#steps.strip) cut++;
    this.#toStrip = cut === text.length ? this.#toStrip - cut : 0;
    return text.slice(cut);
  }

  /** Takes the complete characters at the beginning of the run. */
  #complete(): string {
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
        .decode(Uint8Array.from(this.#run));
      this.#run = [];
      return text;
    } catch {
      return "";
    }
  }

  #endRun(): string {
    if (this.#run.length === 0) return "";
    const text = this.#complete();
    if (text !== "") return text;
    const broken = "\ufffd".repeat(this.#run.length);
    this.#run = [];
    return broken;
  }
}

/** Tokens after which half a character is taken for a broken one. */
const LONGEST_CHARACTER = 16;

/** Any other decoder: decodes a growing window and holds back while it ends in half a character. */
export class WindowDecoder implements PieceDecoder {
  #decode: (tokens: string[]) => string;
  #tokens: string[] = [];
  /** Tokens before this one are only context. */
  #read = 0;
  #known = "";

  /**
   * @param decode Decodes a list of tokens.
   */
  constructor(decode: (tokens: string[]) => string) {
    this.#decode = decode;
  }

  /** Takes one token. */
  push(token: string): string {
    this.#tokens.push(token);
    const text = this.#decode(this.#tokens);
    const waiting = this.#tokens.length - this.#read < LONGEST_CHARACTER;
    if (waiting && text.endsWith("\ufffd")) return "";
    return text.length > this.#known.length ? this.#take(text) : "";
  }

  /** Ends the text. */
  flush(): string {
    if (this.#tokens.length === 0) return "";
    const rest = this.#decode(this.#tokens).slice(this.#known.length);
    this.#tokens = [];
    this.#read = 0;
    this.#known = "";
    return rest;
  }

  #take(text: string): string {
    const fresh = text.slice(this.#known.length);
    // What was just given out stays as context, since decoders treat the first token of a text differently.
    this.#tokens = this.#tokens.slice(this.#read);
    this.#read = this.#tokens.length;
    this.#known = this.#decode(this.#tokens);
    return fresh;
  }
}

/** Any other decoder, where the text is wanted at the end only. */
export class WholeDecoder implements PieceDecoder {
  #decode: (tokens: string[]) => string;
  #tokens: string[] = [];

  /**
   * @param decode Decodes a list of tokens.
   */
  constructor(decode: (tokens: string[]) => string) {
    this.#decode = decode;
  }

  /** Takes one token. */
  push(token: string): string {
    this.#tokens.push(token);
    return "";
  }

  /** Ends the text. */
  flush(): string {
    return this.#decode(this.#tokens.splice(0));
  }
}

/** Steps of a byte-fallback decoder in `tokenizer.json`; undefined for any other decoder. */
export function fallbackSteps(decoder: unknown): FallbackSteps | undefined {
  if (!isRecord(decoder) || decoder["type"] !== "Sequence") return undefined;
  const list = decoder["decoders"];
  if (!Array.isArray(list)) return undefined;
  const replace: [string, string][] = [];
  let strip = "";
  let stripCount = 0;
  let stage = 0;
  // The order is fixed: exchanges, bytes, one text, cuts.
  for (const step of list) {
    if (!isRecord(step)) return undefined;
    const type = step["type"];
    if (type === "Replace" && stage === 0) {
      const pattern = step["pattern"];
      const from = isRecord(pattern) ? pattern["String"] : undefined;
      const to = step["content"];
      if (typeof from !== "string" || from === "" || typeof to !== "string") {
        return undefined;
      }
      replace.push([from, to]);
    } else if (type === "ByteFallback" && stage === 0) {
      stage = 1;
    } else if (type === "Fuse" && stage === 1) {
      stage = 2;
    } else if (type === "Strip" && stage === 2) {
      const { content, start, stop } = step;
      if (
        typeof content !== "string" || content.length !== 1 ||
        typeof start !== "number" || !Number.isSafeInteger(start) ||
        start < 0 || (stop ?? 0) !== 0
      ) return undefined;
      [strip, stripCount, stage] = [content, start, 3];
    } else return undefined;
  }
  return stage >= 2 ? { replace, strip, stripCount } : undefined;
}

/** Whether a decoder of `tokenizer.json` is the byte-level one. */
export function isByteLevel(decoder: unknown): boolean {
  if (!isRecord(decoder)) return false;
  if (decoder["type"] === "ByteLevel") return true;
  const list = decoder["decoders"];
  return decoder["type"] === "Sequence" && Array.isArray(list) &&
    list.length === 1 && isByteLevel(list[0]);
}
