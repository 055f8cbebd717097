/**
 * What the tests of models share: paths, small files, broken files.
 *
 * @module
 */
import { assert } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import fc from "fast-check";

/** The tiny models of the golden tests. */
export const GOLDEN_MODELS = fromFileUrl(
  new URL("../goldens/models", import.meta.url),
);

/** Their names. */
export const GOLDEN_NAMES = [
  "llama",
  "llama31-tied",
  "mistral",
  "mistral-swa",
  "mixtral",
  "qwen2",
  "qwen3",
];

/** Runs of a property, and where its random numbers start. */
export const RUNS = { numRuns: 300, seed: 7 } as const;

/** A folder that is removed with everything in it. Lies in `build`, the only place that tests may write to. */
export function temporaryFolder(): { path: string } & Disposable {
  const parent = fromFileUrl(new URL("../../build/tmp", import.meta.url));
  Deno.mkdirSync(parent, { recursive: true });
  const path = Deno.makeTempDirSync({ dir: parent });
  return {
    path,
    [Symbol.dispose](): void {
      Deno.removeSync(path, { recursive: true });
    },
  };
}

/** Runs something on a file that may be broken: it works, or fails with an error that names the file. */
export function assertClear(run: () => void, file: string): void {
  try {
    run();
  } catch (error) {
    const fits = error instanceof SyntaxError || error instanceof RangeError ||
      error instanceof TypeError;
    assert(
      fits && error.message.includes(file),
      `Expected a clear error: ${
        error instanceof Error ? error.stack : String(error)
      }`,
    );
  }
}

/** A golden model's `config.json`. */
export function goldenConfig(name: string): Record<string, unknown> {
  const file = join(GOLDEN_MODELS, name, "config.json");
  return JSON.parse(Deno.readTextFileSync(file));
}

/** A safetensors file with any header. */
export function rawSafetensors(
  header: string,
  dataBytes: number,
): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  for (let i = 8 + text.length; i < bytes.length; i++) bytes[i] = i % 251;
  return bytes;
}

/** Values that nobody expects. */
const odd: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom(
    null,
    true,
    -1,
    0,
    0.5,
    1e308,
    2 ** 31,
    2 ** 53,
    "",
    "\u0000",
    "__proto__",
    [],
    {},
    [[]],
    [null],
    { type: "Sequence" },
  ),
  fc.jsonValue({ maxDepth: 2 }),
  fc.integer(),
);

type Edit = { at: number; how: number; key: string; value: unknown };

const edit: fc.Arbitrary<Edit> = fc.record({
  at: fc.nat(),
  how: fc.integer({ min: 0, max: 3 }),
  key: fc.oneof(
    fc.constantFrom("type", "id", "0", "__metadata__", "constructor"),
    fc.string({ maxLength: 4 }),
  ),
  value: odd,
});

type Place = { of: Record<string, unknown> | unknown[]; key: string };

function places(value: unknown, found: Place[] = []): Place[] {
  if (typeof value !== "object" || value === null) return found;
  for (const key of Object.keys(value)) {
    found.push({ of: value as Record<string, unknown>, key });
    places((value as Record<string, unknown>)[key], found);
  }
  return found;
}

function applyEdit(value: unknown, { at, how, key, value: odd }: Edit): void {
  const put = structuredClone(odd);
  const all = places(value);
  const place = all[at % Math.max(all.length, 1)];
  if (place === undefined) return;
  const holder = place.of as Record<string, unknown>;
  const old = holder[place.key];
  if (how === 0 && Array.isArray(place.of)) {
    place.of.splice(Number(place.key), 1);
  } else if (how === 0) delete holder[place.key];
  else if (how === 1) holder[place.key] = put;
  else if (how === 2) holder[place.key] = [old, put];
  else if (Array.isArray(place.of)) place.of.push(put);
  else {
    Object.defineProperty(holder, key, {
      value: put,
      enumerable: true,
      configurable: true,
      writable: true,
    });
  }
}

/** Copies of a JSON value with one to three things wrong. */
export function brokenJson<T>(base: T): fc.Arbitrary<T> {
  return fc.array(edit, { minLength: 1, maxLength: 3 }).map((edits) => {
    const copy = structuredClone(base);
    for (const one of edits) applyEdit(copy, one);
    // What a file cannot say is not tried: holes in lists, undefined, cycles.
    return JSON.parse(JSON.stringify(copy));
  });
}

/** Copies of some bytes with a few of them changed, added or removed, or the end cut off. */
export function brokenBytes(
  base: Uint8Array,
): fc.Arbitrary<Uint8Array<ArrayBuffer>> {
  const one = fc.record({
    at: fc.nat(),
    how: fc.integer({ min: 0, max: 4 }),
    value: fc.integer({ min: 0, max: 255 }),
  });
  return fc.array(one, { minLength: 1, maxLength: 4 }).map((edits) => {
    let bytes = [...base];
    for (const { at, how, value } of edits) {
      // Half of the edits fall into the first bytes, where lengths and names are.
      const span = how % 2 === 0 ? Math.min(bytes.length, 64) : bytes.length;
      const i = at % Math.max(span, 1);
      if (how === 0) bytes[i] = value;
      else if (how === 1) bytes[i] = (bytes[i] ?? 0) ^ (1 << (value & 7));
      else if (how === 2) bytes.splice(i, 1);
      else if (how === 3) bytes.splice(i, 0, value);
      else bytes = bytes.slice(0, at % (bytes.length + 1));
    }
    return Uint8Array.from(bytes);
  });
}

/** Character of each byte in byte-level BPE. */
export function byteAlphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => {
    const plain = (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
    return String.fromCharCode(plain ? b : next++);
  });
}

const added = (id: number, content: string) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
});

const bosTemplate = (token: string, id: number) => ({
  type: "TemplateProcessing",
  single: [
    { SpecialToken: { id: token, type_id: 0 } },
    { Sequence: { id: "A", type_id: 0 } },
  ],
  pair: [
    { Sequence: { id: "A", type_id: 0 } },
    { Sequence: { id: "B", type_id: 1 } },
  ],
  special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
});

/** A byte-level tokenizer: 256 bytes, a few merges, BOS 300, EOS 301, end of turn 302. */
export function byteLevelTokenizer(): Record<string, unknown> {
  const vocab: Record<string, number> = {};
  byteAlphabet().forEach((c, i) => vocab[c] = i);
  const merges = ["t h", "th e", "\u0120 the", "o n", "\u0120 .", "' s"];
  merges.forEach((m, i) => vocab[m.replace(" ", "")] = 256 + i);
  return {
    version: "1.0",
    added_tokens: [
      added(300, "<bos>"),
      added(301, "<eos>"),
      added(302, "<|eot_id|>"),
    ],
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        {
          type: "Split",
          pattern: { Regex: " ?\\p{L}+| ?[^\\s\\p{L}]+|\\s+" },
          behavior: "Isolated",
          invert: false,
        },
        { type: "ByteLevel", add_prefix_space: false, use_regex: false },
      ],
    },
    post_processor: bosTemplate("<bos>", 300),
    decoder: { type: "ByteLevel" },
    model: {
      type: "BPE",
      unk_token: null,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}

/** A tokenizer with byte fallback, in the manner of Llama 2. */
export function byteFallbackTokenizer(): Record<string, unknown> {
  const vocab: Record<string, number> = { "<unk>": 0, "<s>": 1, "</s>": 2 };
  for (let b = 0; b < 256; b++) {
    vocab[`<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`] = 3 + b;
  }
  for (const c of "\u2581 abcdehinorst.,'") {
    if (c !== " ") vocab[c] = Object.keys(vocab).length;
  }
  const merges = ["\u2581 a", "t h", "i s"];
  for (const m of merges) {
    vocab[m.replace(" ", "")] = Object.keys(vocab).length;
  }
  return {
    version: "1.0",
    added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "\u2581" },
        { type: "Replace", pattern: { String: " " }, content: "\u2581" },
      ],
    },
    pre_tokenizer: null,
    post_processor: bosTemplate("<s>", 1),
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "\u2581" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}
