// deno-lint-ignore-file camelcase -- fields of tokenizer files keep their names
import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import fc from "fast-check";
import { createTokenizer, type Tokenizer } from "../../models/mod.ts";
import {
  assertClear,
  brokenBytes,
  brokenJson,
  byteFallbackTokenizer,
  byteLevelTokenizer,
  RUNS,
} from "./_fixtures.ts";

const FILE = "folder/tokenizer.json";

/** Feeds tokens one by one; no piece may end in half a surrogate pair. */
function streamed(
  tokenizer: Tokenizer,
  ids: number[],
  options?: { skipSpecialTokens?: boolean; cleanUp?: boolean },
): string {
  const stream = tokenizer.stream(options);
  const pieces = ids.map((id) => stream.push(id));
  pieces.push(stream.flush());
  for (const piece of pieces) assert(piece.isWellFormed());
  return pieces.join("");
}

interface Golden {
  text: string;
  ids: number[];
  ids_plain: number[];
  decoded: string;
  decoded_skip: string;
}

const GOLDENS = fromFileUrl(
  new URL("../../../shared/data/goldens/tokenizers", import.meta.url),
);

/** The goldens are not part of the repository; without them the test is skipped, and says so. */
function golden(name: string): [json: string, cases: string] | undefined {
  try {
    return [
      Deno.readTextFileSync(join(GOLDENS, name, "tokenizer.json")),
      Deno.readTextFileSync(join(GOLDENS, name, "goldens.json")),
    ];
  } catch (error) {
    if (
      !(error instanceof Deno.errors.NotFound) &&
      !(error instanceof Deno.errors.NotCapable)
    ) throw error;
    // deno-lint-ignore no-console -- a skipped test must be seen
    console.warn(`SKIPPED: no tokenizer goldens for ${name} in ${GOLDENS}`);
    return undefined;
  }
}

for (const name of ["llama2", "llama3", "qwen2"]) {
  const files = golden(name);
  Deno.test({
    name: `Tokenizer agrees with all goldens of ${name}` +
      (files ? "" : ` (SKIPPED: none in ${GOLDENS})`),
    ignore: files === undefined,
    fn() {
      const [json, list] = files!;
      const tokenizer = createTokenizer(JSON.parse(json), { file: name });
      const cases: Golden[] = JSON.parse(list);
      assert(cases.length > 250);
      for (const c of cases) {
        const show = { skipSpecialTokens: false };
        assertEquals(tokenizer.encode(c.text), c.ids);
        assertEquals(
          tokenizer.encode(c.text, { specialTokens: false }),
          c.ids_plain,
        );
        assertEquals(tokenizer.decode(c.ids_plain, show), c.decoded);
        assertEquals(tokenizer.decode(c.ids), c.decoded_skip);
        assertEquals(streamed(tokenizer, c.ids_plain, show), c.decoded);
      }
    },
  });
}

function byteLevel(config: Record<string, unknown> = {}): Tokenizer {
  return createTokenizer(byteLevelTokenizer(), {
    file: FILE,
    config: { bos_token: "<bos>", eos_token: { content: "<eos>" }, ...config },
  });
}

const TEXTS = [
  "",
  "the other one",
  "caf\u00e9 \u4e2d\u6587 \ud83d\ude42\ud83d\udc68\u200d\ud83d\udc69",
  "  two  blanks\n\n\tand more ",
  "\ufeffmark",
  "a\u0000b",
];

Deno.test("Tokenizer.decode() gives back what was encoded", () => {
  const tokenizer = byteLevel();
  for (const text of TEXTS) {
    const ids = tokenizer.encode(text);
    assertEquals(ids[0], 300);
    assertEquals(tokenizer.decode(ids), text);
    assertEquals(streamed(tokenizer, ids), text);
  }
});

Deno.test("Tokenizer.stream() gives a character out when its last byte is there", () => {
  const tokenizer = byteLevel();
  const stream = tokenizer.stream();
  const ids = tokenizer.encode("\ud83d\ude42!", { specialTokens: false });
  assertEquals(ids.map((id) => stream.push(id)), [
    "",
    "",
    "",
    "\ud83d\ude42",
    "!",
  ]);
  assertEquals(stream.push(0xe4), "");
  assertEquals(stream.flush(), "\ufffd");
});

Deno.test("Tokenizer.stream() handles byte fallback, and the blank at the beginning", () => {
  const tokenizer = createTokenizer(byteFallbackTokenizer(), { file: FILE });
  const ids = tokenizer.encode("is a \ud83d\ude42\u4e2dd");
  assertEquals(ids[0], 1);
  const stream = tokenizer.stream();
  const pieces = ids.map((id) => stream.push(id)).filter((p) => p !== "");
  assertEquals(pieces, ["is", " a", " ", "\ud83d\ude42", "\u4e2d", "d"]);
  assertEquals(tokenizer.decode(ids), "is a \ud83d\ude42\u4e2dd");
  const half = [3 + 0xf0, 3 + 0x9f];
  assertEquals(tokenizer.decode(half), "\ufffd\ufffd");
  assertEquals(streamed(tokenizer, half), "\ufffd\ufffd");
});

Deno.test("Tokenizer.stream() falls back to the library for other decoders", () => {
  const json = byteFallbackTokenizer();
  // An added Strip at the end makes this a decoder of unknown form with the same result.
  const decoder = json["decoder"] as { decoders: unknown[] };
  decoder.decoders.push({ type: "Strip", content: "#", start: 1, stop: 0 });
  const tokenizer = createTokenizer(json, { file: FILE });
  const text = "is a \ud83d\ude42\u4e2d then .";
  const ids = tokenizer.encode(text);
  assertEquals(tokenizer.decode(ids), text);
  assertEquals(streamed(tokenizer, ids), text);
});

Deno.test("Tokenizer.decode() has no text for ids that it does not know", () => {
  const tokenizer = byteLevel();
  assertEquals(tokenizer.decode([97, 299, 5000, 98]), "ab");
  assertThrows(() => tokenizer.decode([-1]), RangeError, "-1");
  assertThrows(() => tokenizer.decode([1.5]), RangeError, "1.5");
});

Deno.test("Tokenizer.decode() leaves special tokens out unless asked for", () => {
  const tokenizer = byteLevel();
  const ids = [300, 97, 302];
  assertEquals(tokenizer.decode(ids), "a");
  assertEquals(
    tokenizer.decode(ids, { skipSpecialTokens: false }),
    "<bos>a<|eot_id|>",
  );
});

Deno.test("Tokenizer.decode() removes blanks before punctuation where the configuration says so", () => {
  const text = "I do n't know , it 's a ' b . c ? d ! they 've we 're I 'm";
  const clean = "I don't know, it's a'b. c? d! they've we're I'm";
  const plain = byteLevel();
  const ids = plain.encode(text);
  assertEquals(plain.decode(ids), text);
  assertEquals(plain.decode(ids, { cleanUp: true }), clean);
  const cleaning = byteLevel({ clean_up_tokenization_spaces: true });
  assertEquals(cleaning.decode(ids), clean);
  assertEquals(streamed(cleaning, ids), clean);
  assertEquals(cleaning.decode(ids, { cleanUp: false }), text);
});

Deno.test("Tokenizer.stream() and decode() agree on any text, cleaned or not", () => {
  const tokenizer = byteLevel();
  const letters = fc.string({
    unit: fc.constantFrom(..." .?!,'ntmsverx\u00e9\n", " ' ", " n't", " 've"),
    maxLength: 20,
  });
  const texts = fc.oneof(letters, fc.string({ unit: "grapheme" }));
  fc.assert(
    fc.property(texts, fc.boolean(), (text, cleanUp) => {
      const ids = tokenizer.encode(text);
      assertEquals(
        streamed(tokenizer, ids, { cleanUp }),
        tokenizer.decode(ids, { cleanUp }),
      );
      if (!cleanUp) assertEquals(tokenizer.decode(ids), text.toWellFormed());
    }),
    { ...RUNS, numRuns: 2000 },
  );
});

Deno.test("Tokenizer.stream() gives every prefix of a broken text, never taking anything back", () => {
  const tokenizer = byteLevel();
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 302 })), (ids) => {
      assertEquals(streamed(tokenizer, ids), tokenizer.decode(ids));
    }),
    RUNS,
  );
});

Deno.test("Tokenizer names its special tokens", () => {
  const tokenizer = byteLevel();
  assertEquals([tokenizer.bosId, tokenizer.eosId], [300, 301]);
  assertEquals([tokenizer.padId, tokenizer.unknownId], [undefined, undefined]);
  assertEquals(tokenizer.vocabSize, 303);
  assertEquals(tokenizer.id("<|eot_id|>"), 302);
  assertEquals(tokenizer.id("nothing"), undefined);
  assertEquals(tokenizer.token(302), "<|eot_id|>");
  assertEquals([tokenizer.isSpecial(302), tokenizer.isSpecial(64)], [
    true,
    false,
  ]);
  const unnamed = createTokenizer(byteLevelTokenizer(), {
    file: FILE,
    bosId: 300,
    eosId: 301,
  });
  assertEquals([unnamed.bosId, unnamed.eosId], [300, 301]);
});

const TEMPLATE =
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}" +
  "{% if add_generation_prompt %}[assistant]{% endif %}";
const HELLO = [{ role: "user", content: " hello " }];

Deno.test("Tokenizer.applyChat() renders the template of tokenizer_config.json", () => {
  const tokenizer = byteLevel({ chat_template: TEMPLATE });
  assertEquals(tokenizer.hasChatTemplate, true);
  assertEquals(
    tokenizer.applyChat(HELLO),
    "<bos>[user]hello<eos>[assistant]",
  );
  assertEquals(
    tokenizer.applyChat(HELLO, { addGenerationPrompt: false }),
    "<bos>[user]hello<eos>",
  );
});

Deno.test("Tokenizer.encodeChat() and encodePrompt() give one BOS token, encode() as many as the original", () => {
  const tokenizer = byteLevel({ chat_template: TEMPLATE });
  const count = (ids: number[]) => ids.filter((id) => id === 300).length;
  const text = tokenizer.applyChat(HELLO);
  assertEquals(count(tokenizer.encodeChat(HELLO)), 1);
  assertEquals(tokenizer.encodePrompt(text), tokenizer.encodeChat(HELLO));
  assertEquals(count(tokenizer.encode(text)), 2);
  assertEquals(count(tokenizer.encodePrompt("hello")), 1);
});

Deno.test("Tokenizer.applyChat() picks among named templates, and a file goes first", () => {
  const list = [
    { name: "default", template: "D" },
    { name: "tool_use", template: "T{{ date_string }}" },
  ];
  const tokenizer = byteLevel({ chat_template: list });
  assertEquals(tokenizer.applyChat(HELLO), "D");
  assertEquals(
    tokenizer.applyChat(HELLO, {
      template: "tool_use",
      variables: { date_string: "1 May" },
    }),
    "T1 May",
  );
  const withFile = createTokenizer(byteLevelTokenizer(), {
    file: FILE,
    config: { chat_template: list },
    chatTemplate: "F",
  });
  assertEquals(withFile.applyChat(HELLO), "F");
});

Deno.test("Tokenizer.applyChat() says what is wrong with template or messages", () => {
  assertThrows(
    () => byteLevel().applyChat(HELLO),
    TypeError,
    "none",
  );
  assertThrows(
    () => byteLevel({ chat_template: "{% for %}" }).applyChat(HELLO),
    SyntaxError,
    "tokenizer_config.json",
  );
  assertThrows(
    () =>
      byteLevel({ chat_template: "{{ raise_exception('user first') }}" })
        .applyChat(HELLO),
    RangeError,
    "user first",
  );
  assertThrows(() => byteLevel({ chat_template: 7 }), SyntaxError, "7");
  assertThrows(() => byteLevel({ bos_token: 7 }), SyntaxError, "bos_token");
});

Deno.test("createTokenizer() names the field that is wrong", () => {
  const make = (change: Record<string, unknown>) =>
    createTokenizer({ ...byteLevelTokenizer(), ...change }, { file: FILE });
  const model = byteLevelTokenizer()["model"] as Record<string, unknown>;
  const wrong: [change: Record<string, unknown>, text: string][] = [
    [{ model: undefined }, '"model"'],
    [{ model: { ...model, type: "Magic" } }, '"model.type"'],
    [{ model: { ...model, vocab: { a: -1 } } }, 'token "a"'],
    [{ model: { ...model, vocab: { a: 2 ** 32 } } }, 'token "a"'],
    [{ model: { ...model, vocab: 3 } }, '"model.vocab"'],
    [{ model: { ...model, merges: [3] } }, '"model.merges.0"'],
    [{ model: { ...model, merges: [["a", "b"], "c d"] } }, '"model.merges.1"'],
    [{ model: { ...model, vocab: {}, merges: [] } }, "must hold tokens"],
    [{ added_tokens: [{ id: 1 }] }, '"added_tokens.0"'],
    [{ pre_tokenizer: { type: "FixedLength", length: 0 } }, "length"],
    [{ pre_tokenizer: { type: "Split" } }, "pre_tokenizer.pattern"],
    [{ normalizer: { type: "Magic" } }, "must be a tokenizer"],
    [{ decoder: [] }, '"decoder"'],
  ];
  for (const [change, text] of wrong) {
    const { message } = assertThrows(() => make(change), SyntaxError, text);
    assert(message.includes(FILE));
  }
});

for (
  const [name, base] of [
    ["byte level", byteLevelTokenizer()],
    ["byte fallback", byteFallbackTokenizer()],
  ] as const
) {
  Deno.test(`createTokenizer() fails clearly on any broken ${name} file`, () => {
    const run = (json: Record<string, unknown>) => {
      assertClear(() => {
        const tokenizer = createTokenizer(json, { file: FILE });
        for (const text of TEXTS) {
          streamed(tokenizer, tokenizer.encodePrompt(text));
        }
      }, FILE);
    };
    // Without the vocabulary in the way, the rest of the file is hit more often.
    const { model, ...rest } = base;
    fc.assert(fc.property(brokenJson(base), run), RUNS);
    fc.assert(
      fc.property(brokenJson(rest), (json) => run({ ...json, model })),
      RUNS,
    );
  });

  Deno.test(`createTokenizer() fails clearly on any broken text of a ${name} file`, () => {
    const bytes = new TextEncoder().encode(JSON.stringify(base));
    fc.assert(
      fc.property(brokenBytes(bytes), (broken) => {
        let json: unknown;
        try {
          json = JSON.parse(new TextDecoder().decode(broken));
        } catch {
          return;
        }
        if (typeof json !== "object" || json === null) return;
        assertClear(() => {
          const tokenizer = createTokenizer(
            json as Record<string, unknown>,
            { file: FILE },
          );
          streamed(tokenizer, tokenizer.encode("a test"));
        }, FILE);
      }),
      RUNS,
    );
  });
}
