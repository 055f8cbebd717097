/**
 * Text to token ids and back, as the model's `tokenizer.json` says, and its chat template. Encoding is the work of
 * @huggingface/tokenizers; decoding of the two forms that all known families use is done here, so that a stream and a
 * whole text come out the same.
 *
 * @module
 */
import { Template } from "@huggingface/jinja";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import {
  ByteFallbackDecoder,
  ByteLevelDecoder,
  type FallbackSteps,
  fallbackSteps,
  isByteLevel,
  WholeDecoder,
  WindowDecoder,
} from "./_decoders.ts";
import { isRecord, malformed, reason, show } from "./_file.ts";
import {
  type DecodeOptions,
  type PieceDecoder,
  TokenStream,
} from "./token_stream.ts";
import { checkTokenizerFile, type TokenizerFile } from "./_tokenizer_file.ts";

/** One turn of a conversation. */
export interface ChatMessage {
  /** Who speaks: `system`, `user`, `assistant` or what else the template knows. */
  role: string;
  /** What is said. */
  content: string;
}

/** Options of {@linkcode Tokenizer.applyChat}. */
export interface ChatOptions {
  /** End with the beginning of the assistant's answer. Default: true. */
  addGenerationPrompt?: boolean;
  /** Name of the template where the model has several. Default: `default`. */
  template?: string;
  /** More variables for the template, for instance `date_string`. */
  variables?: Record<string, unknown>;
}

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /** Add what the model puts around every text, such as a BOS token. Default: true. */
  specialTokens?: boolean;
}

/** Files beside `tokenizer.json` that a tokenizer is made from. */
export interface TokenizerParts {
  /** Name of `tokenizer.json`, for errors. */
  file: string;
  /** Content of `tokenizer_config.json`. */
  config?: Record<string, unknown>;
  /** Name of `tokenizer_config.json`, for errors. */
  configFile?: string;
  /** Content of `chat_template.jinja`; goes before the template of the configuration. */
  chatTemplate?: string;
  /** Name of `chat_template.jinja`, for errors. */
  chatTemplateFile?: string;
  /** Id of the BOS token where `tokenizer_config.json` names none. */
  bosId?: number | undefined;
  /** Id of the EOS token where `tokenizer_config.json` names none. */
  eosId?: number | undefined;
}

type DecoderForm =
  | { form: "byte level" }
  | { form: "byte fallback"; steps: FallbackSteps }
  | { form: "library" };

/** A text with the common scripts, blanks, digits and signs: trying it finds most of what a broken file can hold. */
const PROBE = "A probe, 12 of\n  it's  \u00e9\u4e2d\ud83d\ude42!";

/** A model's tokenizer. Made by {@linkcode createTokenizer}. */
export class Tokenizer {
  #library: Library;
  #checked: TokenizerFile;
  #file: string;
  #decoder: DecoderForm;
  #special: ReadonlySet<number>;
  #templates: ReadonlyMap<string, { text: string; file: string }>;
  #compiled = new Map<string, Template>();
  #named: Readonly<Record<string, string>>;
  /** Ids are below this number. */
  readonly vocabSize: number;
  /** Token that begins a text, if there is one. */
  readonly bosId: number | undefined;
  /** Token that ends a text, if there is one. */
  readonly eosId: number | undefined;
  /** Token that stands for what the vocabulary lacks, if there is one. */
  readonly unknownId: number | undefined;
  /** Token that fills up batches, if there is one. */
  readonly padId: number | undefined;
  /** Whether decoding removes blanks before punctuation unless told otherwise. */
  readonly cleanUp: boolean;

  /** Use {@linkcode createTokenizer}, which gives clear errors. */
  constructor(json: Record<string, unknown>, parts: TokenizerParts) {
    const { file, config = {}, configFile = "tokenizer_config.json" } = parts;
    this.#file = file;
    this.#checked = checkTokenizerFile(json, file);
    this.#library = makeLibrary(json, config, file);
    const steps = fallbackSteps(json["decoder"]);
    this.#decoder = isByteLevel(json["decoder"])
      ? { form: "byte level" }
      : steps
      ? { form: "byte fallback", steps }
      : { form: "library" };
    this.#special = new Set(
      this.#checked.added.filter((t) => t.special).map((t) => t.id),
    );
    this.vocabSize = this.#checked.tokens.length;
    const named = (key: string): string | undefined => {
      const value = config[key];
      const text = isRecord(value) ? value["content"] : value;
      if (text === undefined || text === null) return undefined;
      if (typeof text !== "string") {
        throw malformed(configFile, `field "${key}" must be a token`, value);
      }
      return text;
    };
    const model = json["model"] as Record<string, unknown>;
    const bos = named("bos_token") ?? this.token(parts.bosId ?? -1);
    const eos = named("eos_token") ?? this.token(parts.eosId ?? -1);
    const unk = named("unk_token") ??
      (model["unk_token"] as string | null | undefined) ?? undefined;
    const pad = named("pad_token");
    const id = (text: string | undefined): number | undefined =>
      text === undefined ? undefined : this.#checked.ids.get(text);
    this.bosId = id(bos);
    this.eosId = id(eos);
    this.unknownId = id(unk);
    this.padId = id(pad);
    this.#named = {
      ...(bos === undefined ? {} : { bos_token: bos }),
      ...(eos === undefined ? {} : { eos_token: eos }),
      ...(unk === undefined ? {} : { unk_token: unk }),
      ...(pad === undefined ? {} : { pad_token: pad }),
    };
    this.cleanUp = config["clean_up_tokenization_spaces"] === true;
    this.#templates = readTemplates(parts, configFile);
    const probe = this.encode(PROBE);
    this.decode(probe, { skipSpecialTokens: false });
  }

  /** Whether the model has a chat template. */
  get hasChatTemplate(): boolean {
    return this.#templates.size > 0;
  }

  /**
   * Encodes a text exactly as the original does: a BOS token that stands in the text already is not looked at.
   *
   * @param text The text.
   * @param options See {@linkcode EncodeOptions}.
   * @returns Token ids.
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const specials = options.specialTokens ?? true;
    let ids: number[];
    try {
      ids = this.#library.encode(text, { add_special_tokens: specials }).ids;
    } catch (error) {
      throw malformed(
        this.#file,
        `it must be able to encode a text (${reason(error)})`,
        undefined,
        error,
      );
    }
    // A vocabulary without a token for unknown text yields undefined here.
    const bad = ids.findIndex((id) => !Number.isInteger(id));
    if (bad >= 0) {
      throw malformed(
        this.#file,
        "its vocabulary must cover the text",
        text.slice(0, 40),
      );
    }
    return ids;
  }

  /**
   * Encodes a prompt with what the model puts around every text, but without a second BOS token where the text, for
   * instance from a chat template, begins with one.
   *
   * @param text The prompt.
   * @returns Token ids.
   */
  encodePrompt(text: string): number[] {
    const ids = this.encode(text);
    const doubled = this.bosId !== undefined && ids[0] === this.bosId &&
      ids[1] === this.bosId;
    return doubled ? ids.slice(1) : ids;
  }

  /**
   * Writes a conversation in the model's chat form and encodes it. Nothing is added: the template holds all tokens.
   *
   * @param messages The turns.
   * @param options See {@linkcode ChatOptions}.
   * @returns Token ids.
   */
  encodeChat(messages: ChatMessage[], options: ChatOptions = {}): number[] {
    return this.encode(this.applyChat(messages, options), {
      specialTokens: false,
    });
  }

  /**
   * Decodes tokens.
   *
   * @param ids Token ids; those that the tokenizer does not know have no text.
   * @param options See {@linkcode DecodeOptions}.
   * @returns The text.
   */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const stream = this.#stream(options, false);
    let text = "";
    for (const id of ids) text += stream.push(id);
    return text + stream.flush();
  }

  /**
   * Starts a text that grows token by token.
   *
   * @param options See {@linkcode DecodeOptions}.
   * @returns The stream. All its pieces together are what {@linkcode Tokenizer.decode} gives, except for byte-fallback
   * tokens that are not UTF-8, where complete characters next to broken ones stay.
   */
  stream(options: DecodeOptions = {}): TokenStream {
    return this.#stream(options, true);
  }

  /** Id of a token's text, if it is one token. */
  id(token: string): number | undefined {
    return this.#checked.ids.get(token);
  }

  /** Text of a token as the vocabulary has it, if there is such an id. */
  token(id: number): string | undefined {
    return this.#checked.tokens[id];
  }

  /** Whether decoding may skip a token. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /**
   * Writes a conversation in the model's chat form.
   *
   * @param messages The turns.
   * @param options See {@linkcode ChatOptions}.
   * @returns The text, to be encoded without adding special tokens.
   * @throws {TypeError} The model has no template of that name.
   * @throws {SyntaxError} The template does not parse.
   * @throws {RangeError} The template refuses the messages.
   */
  applyChat(messages: ChatMessage[], options: ChatOptions = {}): string {
    const { addGenerationPrompt = true, template = "default" } = options;
    const source = this.#templates.get(template);
    if (source === undefined) {
      throw new TypeError(
        `Cannot apply a chat template as the model must have it: "${template}", it has ${
          [...this.#templates.keys()].join(", ") || "none"
        }`,
      );
    }
    let compiled = this.#compiled.get(template);
    try {
      compiled ??= new Template(source.text);
    } catch (error) {
      throw malformed(
        source.file,
        `its chat template must parse (${reason(error)})`,
        undefined,
        error,
      );
    }
    this.#compiled.set(template, compiled);
    try {
      return compiled.render({
        ...this.#named,
        ...options.variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (error) {
      throw new RangeError(
        `Cannot apply the chat template of "${source.file}" as it must accept the messages: ${
          reason(error)
        }`,
        { cause: error },
      );
    }
  }

  #stream(options: DecodeOptions, live: boolean): TokenStream {
    return new TokenStream(
      this,
      this.#pieces(live),
      options.skipSpecialTokens ?? true,
      options.cleanUp ?? this.cleanUp,
    );
  }

  #pieces(live: boolean): PieceDecoder {
    switch (this.#decoder.form) {
      case "byte level":
        return new ByteLevelDecoder();
      case "byte fallback":
        return new ByteFallbackDecoder(this.#decoder.steps, live);
      case "library": {
        const decode = (tokens: string[]): string => this.#byLibrary(tokens);
        return live ? new WindowDecoder(decode) : new WholeDecoder(decode);
      }
    }
  }

  #byLibrary(tokens: string[]): string {
    const ids = tokens.map((t) => this.#checked.ids.get(t) ?? 0);
    if (ids.length === 0) return "";
    try {
      return this.#library.decode(ids, {
        skip_special_tokens: false,
        clean_up_tokenization_spaces: false,
      });
    } catch (error) {
      throw malformed(
        this.#file,
        `it must be able to decode tokens (${reason(error)})`,
        undefined,
        error,
      );
    }
  }
}

function makeLibrary(
  json: Record<string, unknown>,
  config: Record<string, unknown>,
  file: string,
): Library {
  const eos = config["eos_token"];
  try {
    return new Library(
      // Missing parts and parts that are null mean the same; the library insists on null.
      {
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: null,
        ...json,
        added_tokens: json["added_tokens"] ?? [],
      },
      {
        clean_up_tokenization_spaces: false,
        ...(typeof eos === "string" ? { eos_token: eos } : {}),
      },
    );
  } catch (error) {
    throw malformed(
      file,
      `it must be a tokenizer (${reason(error)})`,
      undefined,
      error,
    );
  }
}

function readTemplates(
  parts: TokenizerParts,
  configFile: string,
): Map<string, { text: string; file: string }> {
  const templates = new Map<string, { text: string; file: string }>();
  const value = parts.config?.["chat_template"];
  if (typeof value === "string") {
    templates.set("default", { text: value, file: configFile });
  } else if (Array.isArray(value)) {
    for (const entry of value) {
      const { name, template } = isRecord(entry) ? entry : {};
      if (typeof name !== "string" || typeof template !== "string") {
        throw malformed(
          configFile,
          'field "chat_template" must be a text or a list of named ones',
          entry,
        );
      }
      templates.set(name, { text: template, file: configFile });
    }
  } else if (value !== undefined && value !== null) {
    throw malformed(
      configFile,
      'field "chat_template" must be a text or a list of named ones',
      show(value),
    );
  }
  if (parts.chatTemplate !== undefined) {
    templates.set("default", {
      text: parts.chatTemplate,
      file: parts.chatTemplateFile ?? "chat_template.jinja",
    });
  }
  return templates;
}

/**
 * Makes a tokenizer from the content of its files.
 *
 * @param json Content of `tokenizer.json`.
 * @param parts Names and contents of the files beside it.
 * @returns The tokenizer.
 * @throws {SyntaxError} A file is broken; the message names it and the field.
 */
export function createTokenizer(
  json: Record<string, unknown>,
  parts: TokenizerParts,
): Tokenizer {
  return new Tokenizer(json, parts);
}
