/**
 * Checks of `tokenizer.json` before it is given to the tokenizer library, which trusts its input.
 *
 * @module
 */
import { isRecord, malformed, show } from "./_file.ts";

/** Largest token id; leaves room for every vocabulary there is. */
const MAX_ID = 2 ** 24 - 1;
/** Deepest nesting of sequences. */
const MAX_DEPTH = 8;

/** A token that is matched in the text before the model sees it. */
export interface AddedToken {
  /** Id. */
  id: number;
  /** Text. */
  content: string;
  /** Whether decoding may skip it. */
  special: boolean;
}

/** A checked `tokenizer.json`. */
export interface TokenizerFile {
  /** Text of each token; ids may have gaps. */
  tokens: (string | undefined)[];
  /** Id of each text. */
  ids: Map<string, number>;
  /** Added tokens. */
  added: AddedToken[];
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 &&
    value <= MAX_ID;
}

/** Calls `visit` for a component and all that it consists of. */
function walk(
  part: unknown,
  field: string,
  children: string,
  file: string,
  visit: (part: Record<string, unknown>, field: string) => void,
  depth = 0,
): void {
  if (part === null || part === undefined) return;
  if (!isRecord(part)) {
    throw malformed(file, `field "${field}" must be an object`, part);
  }
  if (typeof part["type"] !== "string") {
    throw malformed(
      file,
      `field "${field}.type" must be a text`,
      part["type"] ?? "missing",
    );
  }
  visit(part, field);
  if (part["type"] !== "Sequence") return;
  const list = part[children];
  if (!Array.isArray(list) || depth >= MAX_DEPTH) {
    throw malformed(
      file,
      `field "${field}.${children}" must be a list, at most ${MAX_DEPTH} deep`,
      list ?? "missing",
    );
  }
  list.forEach((child, i) => {
    if (child === null) {
      throw malformed(
        file,
        `field "${field}.${children}.${i}" must be an object`,
        child,
      );
    }
    walk(child, `${field}.${children}.${i}`, children, file, visit, depth + 1);
  });
}

function checkPattern(
  part: Record<string, unknown>,
  field: string,
  file: string,
): void {
  const pattern = part["pattern"];
  const text = isRecord(pattern)
    ? pattern["String"] ?? pattern["Regex"]
    : undefined;
  if (typeof text !== "string") {
    throw malformed(
      file,
      `field "${field}.pattern" must hold "String" or "Regex"`,
      pattern ?? "missing",
    );
  }
}

function checkParts(json: Record<string, unknown>, file: string): void {
  const replaces = (part: Record<string, unknown>, field: string): void => {
    if (part["type"] === "Replace") checkPattern(part, field, file);
    for (const key of ["content", "prepend"]) {
      const value = part[key];
      if (value !== undefined && value !== null && typeof value !== "string") {
        throw malformed(file, `field "${field}.${key}" must be a text`, value);
      }
    }
  };
  walk(json["normalizer"], "normalizer", "normalizers", file, replaces);
  walk(json["decoder"], "decoder", "decoders", file, replaces);
  walk(
    json["pre_tokenizer"],
    "pre_tokenizer",
    "pretokenizers",
    file,
    (part, field) => {
      if (part["type"] === "Split" || part["type"] === "Replace") {
        checkPattern(part, field, file);
      }
      // The library steps by this length.
      if (
        part["type"] === "FixedLength" &&
        !(isId(part["length"]) && part["length"] > 0)
      ) {
        throw malformed(
          file,
          `field "${field}.length" must be a positive integer`,
          part["length"] ?? "missing",
        );
      }
    },
  );
  walk(
    json["post_processor"],
    "post_processor",
    "processors",
    file,
    () => {},
  );
}

function readVocabulary(
  model: Record<string, unknown>,
  file: string,
): [text: string, id: number][] {
  const vocab = model["vocab"];
  // Unigram models list [text, score]; the id is the place.
  if (Array.isArray(vocab)) {
    return vocab.map((entry, id) => {
      if (!Array.isArray(entry) || typeof entry[0] !== "string") {
        throw malformed(
          file,
          `field "model.vocab.${id}" must be a text and a score`,
          entry,
        );
      }
      return [entry[0], id];
    });
  }
  if (!isRecord(vocab)) {
    throw malformed(
      file,
      'field "model.vocab" must be an object',
      vocab ?? "missing",
    );
  }
  const entries = Object.entries(vocab);
  for (const [text, id] of entries) {
    if (!isId(id)) {
      throw malformed(
        file,
        `token ${show(text)} must have an id of 0 to ${MAX_ID}`,
        id,
      );
    }
  }
  return entries as [string, number][];
}

function checkMerges(model: Record<string, unknown>, file: string): void {
  const merges = model["merges"];
  if (model["type"] !== "BPE" && merges === undefined) return;
  if (!Array.isArray(merges)) {
    throw malformed(
      file,
      'field "model.merges" must be a list',
      merges ?? "missing",
    );
  }
  const pairs = Array.isArray(merges[0]);
  for (let i = 0; i < merges.length; i++) {
    const merge = merges[i];
    const good = pairs
      ? Array.isArray(merge) && merge.length === 2 &&
        typeof merge[0] === "string" && typeof merge[1] === "string"
      : typeof merge === "string" && merge.indexOf(" ") > 0;
    if (!good) {
      throw malformed(file, `field "model.merges.${i}" must be a pair`, merge);
    }
  }
}

function readAdded(
  json: Record<string, unknown>,
  file: string,
): AddedToken[] {
  const list = json["added_tokens"] ?? [];
  if (!Array.isArray(list)) {
    throw malformed(file, 'field "added_tokens" must be a list', list);
  }
  return list.map((entry, i) => {
    const { id, content, special } = isRecord(entry) ? entry : {};
    if (!isId(id) || typeof content !== "string" || content === "") {
      throw malformed(
        file,
        `field "added_tokens.${i}" must have an id of 0 to ${MAX_ID} and a text`,
        entry,
      );
    }
    return { id, content, special: special === true };
  });
}

/**
 * Checks the content of a `tokenizer.json`.
 *
 * @throws {SyntaxError} Something is wrong; the message names the file and the field.
 */
export function checkTokenizerFile(
  json: Record<string, unknown>,
  file: string,
): TokenizerFile {
  const model = json["model"];
  if (!isRecord(model)) {
    throw malformed(
      file,
      'field "model" must be an object',
      model ?? "missing",
    );
  }
  const type = model["type"];
  if (type !== "BPE" && type !== "Unigram" && type !== "WordPiece") {
    throw malformed(
      file,
      'field "model.type" must be "BPE", "Unigram" or "WordPiece"',
      type ?? "missing",
    );
  }
  const unknown = model["unk_token"];
  if (
    unknown !== undefined && unknown !== null && typeof unknown !== "string"
  ) {
    throw malformed(file, 'field "model.unk_token" must be a text', unknown);
  }
  const vocabulary = readVocabulary(model, file);
  checkMerges(model, file);
  checkParts(json, file);
  const added = readAdded(json, file);
  const tokens: (string | undefined)[] = [];
  const ids = new Map<string, number>();
  const all = [
    ...vocabulary,
    ...added.map(({ content, id }): [string, number] => [content, id]),
  ];
  for (const [text, id] of all) {
    tokens[id] = text;
    ids.set(text, id);
  }
  if (vocabulary.length === 0) {
    throw malformed(file, 'field "model.vocab" must hold tokens', "none");
  }
  return { tokens, ids, added };
}
