import { assert, assertEquals } from "@std/assert";
import { Tokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { PieceCodec, type TokenizerJson } from "../../models/train/codec.ts";
import { buildTokenizer } from "../../models/train/tokenizer.ts";
import { createTask, TASKS } from "../../tasks/mod.ts";
import { Random } from "../../tasks/random.ts";
import { randomPair } from "../../tasks/ruler/_parts.ts";
import { ADJECTIVES, NOUNS, VERBS } from "../../tasks/text/words.ts";

const folder = new URL("../../models/needle-6m/", import.meta.url);
const read = (name: string): object =>
  JSON.parse(Deno.readTextFileSync(new URL(name, folder)));
const json = read("tokenizer.json");
const library = new Tokenizer(json, read("tokenizer_config.json"));
const codec = new PieceCodec(json as TokenizerJson);
const plain = (text: string): number[] =>
  library.encode(text, { add_special_tokens: false }).ids;

Deno.test("the tokenizer adds BOS and nothing else", () => {
  assertEquals(library.encode("The lamp").ids, [1, ...plain("The lamp")]);
});

Deno.test("the tokenizer has one token for every listed word with a leading space", () => {
  for (const word of [...ADJECTIVES, ...NOUNS, ...VERBS]) {
    assertEquals(plain(` ${word}`).length, 1, word);
  }
});

Deno.test("the tokenizer cuts numbers in pairs of digits", () => {
  assertEquals(plain(" 1234567").length, 4);
  assertEquals(plain("7").length, 1);
});

Deno.test("PieceCodec gives the library's ids and round-trips any text", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "grapheme", minLength: 1, maxLength: 60 }),
      (text) => {
        const ids = codec.encode(text);
        assertEquals(ids, plain(text));
        assertEquals(codec.decode(ids), text);
        assertEquals(
          library.decode(ids, { skip_special_tokens: true }),
          text,
        );
      },
    ),
    { seed: 1, numRuns: 500 },
  );
});

Deno.test("PieceCodec gives the library's ids on every task", () => {
  for (const name of Object.keys(TASKS)) {
    const task = name === "needle"
      ? createTask(name, { lengths: [1024], depths: 2, seed: 5 })
      : createTask(name, { length: 1024, count: 2, seed: 5 });
    for (const { prompt, answerPrefix, answers } of task.examples(codec)) {
      const text = `${prompt}${answerPrefix} ${answers.join(", ")}`;
      assertEquals(codec.encode(text), plain(text));
    }
  }
});

Deno.test("the tokenizer reads our haystack language in few tokens per word", () => {
  const [example] = createTask("needle", { lengths: [2048], depths: 1 })
    .examples(codec);
  const words = (example?.prompt ?? "").split(/\s+/).length;
  assert(codec.encode(example?.prompt ?? "").length < 1.5 * words);
});

const nextJson = buildTokenizer();
const next = new PieceCodec(nextJson as unknown as TokenizerJson);

Deno.test("a tokenizer that is trained now gives the library's ids on every task", () => {
  const other = new Tokenizer(nextJson, read("tokenizer_config.json"));
  for (const name of Object.keys(TASKS)) {
    const task = name === "needle"
      ? createTask(name, { lengths: [1024], depths: 2, seed: 5 })
      : createTask(name, { length: 1024, count: 2, seed: 5 });
    for (const { prompt, answerPrefix, answers } of task.examples(next)) {
      const text = `${prompt}${answerPrefix} ${answers.join(", ")}`;
      assertEquals(
        next.encode(text),
        other.encode(text, { add_special_tokens: false }).ids,
      );
      assertEquals(next.decode(next.encode(text)), text);
    }
  }
});

Deno.test("a tokenizer that is trained now begins every name of variable tracking with two letters and goes on with one each", () => {
  const letter = fc.constantFrom(..."ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  fc.assert(
    fc.property(
      fc.array(letter, { minLength: 3, maxLength: 8 }),
      (letters) => {
        const name = letters.join("");
        const parts = next.encode(` ${name} =`).map((id) => next.decode([id]));
        assertEquals(parts, [
          ` ${name.slice(0, 2)}`,
          ...name.slice(2),
          " =",
        ]);
      },
    ),
    { seed: 1, numRuns: 200 },
  );
});

Deno.test("a tokenizer that is trained now reads a key of two words as two tokens", () => {
  const random = new Random(1);
  for (let i = 0; i < 200; i++) {
    const key = randomPair(random);
    // Words of hexadecimal digits alone are cut like UUIDs.
    if (/-(?:[0-9a-f]{2})+$/.test(key)) continue;
    assertEquals(
      next.encode(` ${key} holds`).map((id) => next.decode([id])),
      [` ${key.split("-")[0]}`, `-${key.split("-")[1]}`, " holds"],
    );
  }
});

Deno.test("a tokenizer that is trained now cuts every UUID in the same sixteen places", () => {
  const pairs = fc.array(fc.constantFrom(..."0123456789abcdef"), {
    minLength: 32,
    maxLength: 32,
  });
  fc.assert(
    fc.property(pairs, fc.constantFrom("", " "), (digits, space) => {
      const hex = digits.join("");
      const uuid = [[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]]
        .map(([from, to]) => hex.slice(from, to)).join("-");
      const ids = next.encode(`${space}${uuid}.`).slice(0, 16);
      const parts = ids.map((id) => next.decode([id]).trim());
      assertEquals(
        parts.map((part) => part.replace("-", "")),
        hex.match(/../g),
      );
      assertEquals(next.decode(ids).trim(), uuid);
    }),
    { seed: 1, numRuns: 200 },
  );
});
