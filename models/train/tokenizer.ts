/**
 * Trains the tokenizer of the bundled model: a byte-level BPE over the text that our own generators write.
 *
 * The vocabulary is: special tokens, the 256 bytes, one- and two-digit numbers, pairs of hexadecimal digits, pairs of
 * capitals that begin a name, the pieces that the generators use most (words with their leading space) as whole entries,
 * and BPE merges for everything else.
 *
 * A model only works with the tokenizer it was trained with, so the files go to a folder of their own:
 * `deno run --allow-write=results/train models/train/tokenizer.ts results/train`
 *
 * @module
 */
import { createTask, TASKS } from "../../tasks/mod.ts";
import { ADJECTIVES, NOUNS, VERBS } from "../../tasks/text/words.ts";
import { BYTE_CHARS, byteString, PIECE_PATTERN } from "./codec.ts";

/** Entries of the vocabulary. */
const VOCABULARY = 3200;
/** Examples of the corpus in which a word must come up to be an entry. */
const COMMON = 30;
/** Merges among them. */
const MERGES = 449;
const SPECIAL = ["<pad>", "<bos>", "<eos>"];

/** A codec that counts pieces and encodes each as one token: enough to size the corpus. */
function countingCodec(counts: Map<string, number>) {
  const pattern = new RegExp(PIECE_PATTERN, "gu");
  const ids = new Map<string, number>();
  const pieces: string[] = [];
  return {
    encode(text: string): number[] {
      return (text.match(pattern) ?? []).map((piece) => {
        counts.set(piece, (counts.get(piece) ?? 0) + 1);
        let id = ids.get(piece);
        if (id === undefined) {
          id = pieces.length;
          pieces.push(piece);
          ids.set(piece, id);
        }
        return id;
      });
    },
    decode: (list: number[]): string => list.map((i) => pieces[i]).join(""),
  };
}

/** How often pieces occur in all tasks' text, and in how many examples. */
function corpus(): {
  counts: Map<string, number>;
  examples: Map<string, number>;
} {
  const sizing = new Map<string, number>();
  const counts = new Map<string, number>();
  const examples = new Map<string, number>();
  const add = (to: Map<string, number>, piece: string, count = 1): void => {
    to.set(piece, (to.get(piece) ?? 0) + count);
  };
  const codec = countingCodec(sizing);
  for (const name of Object.keys(TASKS)) {
    const task = name === "needle"
      ? createTask(name, { lengths: [2048], seed: 7, examplesPerCell: 4 })
      : createTask(name, { length: 2048, seed: 7, count: 40 });
    for (const { prompt, answerPrefix } of task.examples(codec)) {
      const own = new Map<string, number>();
      countingCodec(own).encode(prompt + answerPrefix);
      for (const [piece, count] of own) {
        add(counts, piece, count);
        add(examples, piece);
      }
    }
  }
  return { counts, examples };
}

/**
 * Trains merges: the most frequent pair of neighbours becomes one token, again and again. Ties go to the pair that sorts
 * first, so the result does not depend on the order of the counts.
 */
export function trainMerges(
  counts: ReadonlyMap<string, number>,
  wanted: number,
): [string, string][] {
  const words = [...counts].map(([piece, count]) => ({
    parts: Array.from(byteString(piece)),
    count,
  }));
  const merges: [string, string][] = [];
  while (merges.length < wanted) {
    const pairs = new Map<string, number>();
    for (const { parts, count } of words) {
      for (let i = 0; i + 1 < parts.length; i++) {
        const pair = `${parts[i]} ${parts[i + 1]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + count);
      }
    }
    let best = "";
    let most = 0;
    for (const [pair, count] of pairs) {
      if (count > most || (count === most && pair < best)) {
        best = pair;
        most = count;
      }
    }
    if (most === 0) break;
    const [left, right] = best.split(" ") as [string, string];
    merges.push([left, right]);
    for (const { parts } of words) {
      for (let i = 0; i + 1 < parts.length; i++) {
        if (parts[i] === left && parts[i + 1] === right) {
          parts.splice(i, 2, left + right);
        }
      }
    }
  }
  return merges;
}

/** Builds the whole `tokenizer.json`. */
export function buildTokenizer(): { [key: string]: unknown } {
  const { counts, examples } = corpus();
  const tokens = [...SPECIAL, ...BYTE_CHARS];
  const has = new Set(tokens);
  const add = (token: string): void => {
    if (has.has(token)) return;
    has.add(token);
    tokens.push(token);
  };
  const digits = [
    ...Array.from({ length: 10 }, (_, i) => String(i)),
    ...Array.from({ length: 100 }, (_, i) => String(i).padStart(2, "0")),
  ];
  for (const d of digits) {
    add(byteString(d));
    add(byteString(` ${d}`));
  }
  const hex = Array.from("0123456789abcdef");
  for (const pair of hex.flatMap((a) => hex.map((b) => a + b))) {
    add(pair);
    add(byteString(` ${pair}`));
    add(`-${pair}`);
  }
  // The other letters of a name stand alone: no merge may join them.
  const capitals = Array.from("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  for (const pair of capitals.flatMap((a) => capitals.map((b) => a + b))) {
    add(byteString(` ${pair}`));
  }
  for (const piece of ["VAR", " ="]) add(byteString(piece));
  for (const word of [...NOUNS, ...ADJECTIVES, ...VERBS]) {
    add(byteString(` ${word}`));
  }
  // The second word of a key.
  for (const noun of NOUNS) add(`-${noun}`);

  // Merges learn from the pieces that will not be entries, each word of a list once more so that all are seen.
  const plurals = new Set(NOUNS.map((noun) => ` ${noun}s`));
  // Invented names and coded words, which come up in fewer examples, are no words.
  const common = [...examples]
    .filter(([piece, count]) =>
      count >= COMMON && /^[ -]?\p{L}{2,}$/u.test(piece) &&
      !/\p{Lu}{2}/u.test(piece) && !plurals.has(piece)
    )
    .sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const rest = new Map(
    [...counts].filter(([piece]) =>
      !has.has(byteString(piece)) && !/\p{N}|\p{Lu}{2}/u.test(piece)
    ).map(([piece, count]) => [piece, Math.ceil(Math.sqrt(count))]),
  );
  for (const word of [...NOUNS, ...ADJECTIVES, ...VERBS]) {
    rest.set(` ${word}`, 20);
  }
  const merges = trainMerges(rest, MERGES);
  for (const [left, right] of merges) add(left + right);
  for (const [piece] of common) {
    if (tokens.length >= VOCABULARY) break;
    add(byteString(piece));
  }
  const byteLevel = {
    type: "ByteLevel",
    "add_prefix_space": false,
    "trim_offsets": true,
    "use_regex": false,
  };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    "added_tokens": SPECIAL.map((content, id) => ({
      id,
      content,
      "single_word": false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    "pre_tokenizer": {
      type: "Sequence",
      pretokenizers: [
        {
          type: "Split",
          pattern: { Regex: PIECE_PATTERN },
          behavior: "Isolated",
          invert: false,
        },
        byteLevel,
      ],
    },
    "post_processor": {
      type: "TemplateProcessing",
      single: [
        { SpecialToken: { id: "<bos>", "type_id": 0 } },
        { Sequence: { id: "A", "type_id": 0 } },
      ],
      pair: [
        { SpecialToken: { id: "<bos>", "type_id": 0 } },
        { Sequence: { id: "A", "type_id": 0 } },
        { Sequence: { id: "B", "type_id": 1 } },
      ],
      "special_tokens": {
        "<bos>": { id: "<bos>", ids: [1], tokens: ["<bos>"] },
      },
    },
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      "unk_token": null,
      "continuing_subword_prefix": null,
      "end_of_word_suffix": null,
      "fuse_unk": false,
      "byte_fallback": false,
      "ignore_merges": true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}

if (import.meta.main) {
  const [folder] = Deno.args;
  if (folder === undefined) {
    throw new TypeError(
      "Cannot write the tokenizer as the first argument must name a folder",
    );
  }
  const write = (name: string, value: unknown): void =>
    Deno.writeTextFileSync(
      `${folder}/${name}`,
      JSON.stringify(value, null, 1) + "\n",
    );
  Deno.mkdirSync(folder, { recursive: true });
  write("tokenizer.json", buildTokenizer());
  write("tokenizer_config.json", {
    "add_bos_token": true,
    "add_eos_token": false,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": false,
    "eos_token": "<eos>",
    "model_max_length": 5120,
    "pad_token": "<pad>",
    "tokenizer_class": "PreTrainedTokenizerFast",
  });
}
