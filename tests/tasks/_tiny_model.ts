/**
 * A golden model with a tokenizer of one token per byte, so that prompts can be worked out by hand.
 *
 * @module
 */
import { fromFileUrl, join } from "@std/path";

const GOLDEN = fromFileUrl(
  new URL("../goldens/models/llama", import.meta.url),
);

/** Special tokens: two in the place of control characters, the rest in that of bytes which UTF-8 does not have. */
export const SPECIAL: Readonly<Record<string, number>> = {
  "<s>": 1,
  "</s>": 2,
  "<|begin_of_text|>": 248,
  "<|start_header_id|>": 249,
  "<|end_header_id|>": 250,
  "<|eot_id|>": 251,
};

/** A chat form that is easy to spot. */
export const CHAT_TEMPLATE =
  "{{ bos_token }}U:{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}|A:{% endif %}";

/** The letters by which byte-level tokenizers write bytes. */
function byteLetters(): string[] {
  const printable = (b: number): boolean =>
    (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from(
    { length: 256 },
    (_, b) => String.fromCodePoint(printable(b) ? b : next++),
  );
}

function tokenizerJson(): object {
  const special = Object.entries(SPECIAL);
  const taken = new Set(special.map(([, id]) => id));
  const letters = byteLetters().map((letter, id) => [letter, id] as const)
    .filter(([, id]) => !taken.has(id));
  return {
    version: "1.0",
    added_tokens: special.map(([content, id]) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "ByteLevel",
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: false,
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [
        { SpecialToken: { id: "<s>", type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
      ],
      pair: [],
      special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
    },
    decoder: {
      type: "ByteLevel",
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: false,
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries([...letters, ...special]),
      merges: [],
    },
  };
}

/** Writes the model into a folder: 512 positions, 3 layers, bytes as tokens. */
export function writeTinyModel(
  folder: string,
  { chat = false, positions = 512 }: { chat?: boolean; positions?: number } =
    {},
): void {
  Deno.mkdirSync(folder, { recursive: true });
  for (const name of ["generation_config.json", "model.safetensors"]) {
    Deno.copyFileSync(join(GOLDEN, name), join(folder, name));
  }
  const config = JSON.parse(Deno.readTextFileSync(join(GOLDEN, "config.json")));
  const write = (name: string, value: unknown) =>
    Deno.writeTextFileSync(join(folder, name), JSON.stringify(value));
  write("config.json", { ...config, max_position_embeddings: positions });
  write("tokenizer.json", tokenizerJson());
  write("tokenizer_config.json", {
    bos_token: "<s>",
    eos_token: "</s>",
    clean_up_tokenization_spaces: false,
    ...(chat ? { chat_template: CHAT_TEMPLATE } : {}),
  });
}

/** UTF-8 bytes of a text: the ids of the byte tokenizer. */
export function bytesOf(text: string): number[] {
  return [...new TextEncoder().encode(text)];
}
