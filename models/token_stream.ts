/**
 * Text that grows token by token.
 *
 * @module
 */
import { cleanUp, settledLength } from "./_cleanup.ts";

/** Turns the texts of tokens into text, piece by piece. */
export interface PieceDecoder {
  /** Takes one token; returns the text that is certain by now. */
  push(token: string): string;
  /** Ends the text; returns the rest. */
  flush(): string;
}

/** What a stream needs to know about tokens. */
export interface TokenTexts {
  /** Text of a token as the vocabulary has it, if there is such an id. */
  token(id: number): string | undefined;
  /** Whether decoding may skip a token. */
  isSpecial(id: number): boolean;
}

/** Options of decoding. */
export interface DecodeOptions {
  /** Leave special tokens out. Default: true. */
  skipSpecialTokens?: boolean;
  /** Remove blanks before punctuation. Default: as `tokenizer_config.json` says, and no where it says nothing. */
  cleanUp?: boolean;
}

/** Tokens in, text out; what was given out never changes and never ends in half a character. */
export class TokenStream {
  #texts: TokenTexts;
  #decoder: PieceDecoder;
  #skip: boolean;
  #cleanUp: boolean;
  #held = "";

  /** Made by `Tokenizer.stream()`. */
  constructor(
    texts: TokenTexts,
    decoder: PieceDecoder,
    skip: boolean,
    cleanUp: boolean,
  ) {
    this.#texts = texts;
    this.#decoder = decoder;
    this.#skip = skip;
    this.#cleanUp = cleanUp;
  }

  /**
   * Takes one token.
   *
   * @param id The token; one that the tokenizer does not know has no text.
   * @returns The text that is certain by now, often none.
   */
  push(id: number): string {
    if (!Number.isInteger(id) || id < 0) {
      throw new RangeError(
        `Cannot decode a token as its id must be a non-negative integer: ${id}`,
      );
    }
    if (this.#skip && this.#texts.isSpecial(id)) return "";
    const token = this.#texts.token(id);
    return token === undefined ? "" : this.#settle(this.#decoder.push(token));
  }

  /**
   * Ends the text.
   *
   * @returns The rest; a character that is still incomplete becomes U+FFFD.
   */
  flush(): string {
    const rest = this.#held + this.#decoder.flush();
    this.#held = "";
    return this.#cleanUp ? cleanUp(rest) : rest;
  }

  #settle(text: string): string {
    if (!this.#cleanUp) return text;
    this.#held += text;
    const cut = settledLength(this.#held);
    const settled = this.#held.slice(0, cut);
    this.#held = this.#held.slice(cut);
    return cleanUp(settled);
  }
}
