import { assertEquals, assertThrows } from "@std/assert";
import {
  buildPrompt,
  planPrompt,
  promptModel,
  PROTOCOL_SCHEMA,
  type ProtocolOptions,
} from "../../eval/protocol.ts";
import { openModelFolder } from "../../models/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { bundledCodec } from "../tasks/_codecs.ts";
import { bytesOf, writeTinyModel } from "../tasks/_tiny_model.ts";

interface Asked {
  prompt: string;
  answerPrefix?: string;
  completion?: boolean;
  maxNewTokens?: number;
  name?: string;
  chatModel?: boolean;
}

/** Builds a prompt for the model whose tokens are bytes. */
function build(
  {
    prompt,
    answerPrefix = "",
    completion = false,
    maxNewTokens = 4,
    name = "tiny",
    chatModel = false,
  }: Asked,
  options: ProtocolOptions = {},
) {
  using folder = temporaryFolder();
  writeTinyModel(folder.path, { chat: chatModel, positions: 64 });
  const model = promptModel(openModelFolder(folder.path), name);
  const example = { id: "x", prompt, answerPrefix, maxNewTokens, completion };
  const plan = planPrompt(model, example, PROTOCOL_SCHEMA.parse(options));
  return { plan, ...buildPrompt(model, example, plan) };
}

Deno.test("a plain prompt is BOS, prompt and answer prefix", () => {
  const { ids, plan } = build({ prompt: "Say é", answerPrefix: ": " });
  assertEquals(ids, [1, 83, 97, 121, 32, 0xc3, 0xa9, 58, 32]);
  assertEquals(plan, {
    chat: "none",
    maxPromptTokens: 60, // 64 positions less 4 new tokens
    truncate: "refuse",
    beyondPositions: false,
  });
});

Deno.test("a model with a chat template gets it, and the answer prefix stands in the assistant's turn", () => {
  const asked = { prompt: "Hi", answerPrefix: " so", chatModel: true };
  const wrapped = [1, ...bytesOf("U:Hi|A: so")];
  const plain = [1, ...bytesOf("Hi so")];
  assertEquals(build(asked).ids, wrapped);
  assertEquals(build(asked, { chat: "never" }).ids, plain);
  assertEquals(build({ ...asked, completion: true }).ids, plain);
  assertEquals(
    build({ ...asked, completion: true }, { chat: "always" }).ids,
    wrapped,
  );
  assertThrows(
    () => build({ prompt: "Hi" }, { chat: "always" }),
    RangeError,
    "must have a chat template",
  );
});

Deno.test("the reference's forms go by the model's name: Llama 3 after the cut, Llama 2 before it", () => {
  const chat = { chat: "reference" } as const;
  const three = build({ prompt: "Hi", name: "Meta-Llama-3-8B" }, chat);
  const header = (role: string) => [249, ...bytesOf(role), 250, 10, 10];
  assertEquals(three.ids, [
    248,
    ...header("user"),
    ...bytesOf("Hi"),
    251,
    ...header("assistant"),
  ]);
  assertEquals(
    build({ prompt: "Hi", name: "llama3-x", completion: true }, chat).ids,
    [1, 72, 105],
  );
  const two = { prompt: "Hi", name: "my-LLAMA2-chat", completion: true };
  assertEquals(build(two, chat).ids, [1, ...bytesOf("[INST] Hi [/INST]")]);
  // Twelve tokens are left of BOS and 17 characters: the form itself is cut.
  assertEquals(
    build(two, { ...chat, truncate: "middle", maxPromptTokens: 12 }).ids,
    [1, ...bytesOf("[INST" + "/INST]")],
  );
  assertEquals(build({ prompt: "Hi", name: "Llama-2" }, chat).ids, [
    1,
    72,
    105,
  ]);
});

Deno.test("truncation keeps the first and the last half, BOS counted, and encodes the text again", () => {
  const cut = (prompt: string, maxPromptTokens: number) =>
    build({ prompt }, { truncate: "middle", maxPromptTokens });
  // BOS + 16: the first five are BOS and abcd, the last five lmnop.
  const ten = cut("abcdefghijklmnop", 10);
  assertEquals(ten.ids, [1, ...bytesOf("abcdlmnop")]);
  assertEquals([ten.fullTokens, ten.truncated], [17, true]);
  // An odd number is halved downwards.
  assertEquals(cut("abcdefghijklmnop", 11).ids, ten.ids);
  // As many as allowed: nothing is cut.
  const all = cut("abcdefghijklmnop", 17);
  assertEquals([all.ids.length, all.truncated], [17, false]);
  assertEquals(cut("abcdefghijklmnop", 16).truncated, true);
});

Deno.test("a cut through a character leaves a replacement character", () => {
  // The first half is BOS, abc and the first byte of é; the last is a whole é and xyz.
  const { ids } = build(
    { prompt: "abcé-------éxyz" },
    { truncate: "middle", maxPromptTokens: 10 },
  );
  assertEquals(
    ids,
    [1, ...bytesOf("abc\u{fffd}"), ...bytesOf("éxyz")],
  );
});

Deno.test("a chat form comes on top of the cut prompt and is never cut itself", () => {
  const { ids } = build(
    { prompt: "abcdefghijklmnop", chatModel: true },
    { truncate: "middle", maxPromptTokens: 10 },
  );
  assertEquals(ids, [1, ...bytesOf("U:abcdlmnop|A:")]);
});

Deno.test("prompts that are too long are refused, or allowed beyond the positions when asked for", () => {
  const long = "x".repeat(70);
  assertThrows(
    () => build({ prompt: long }),
    RangeError,
    'example "x" as its prompt must have at most 60 tokens: it has 71',
  );
  assertThrows(
    () => build({ prompt: long }, { maxPromptTokens: 100 }),
    RangeError,
    "must fit in the model's 64 positions: they have 71 + 4",
  );
  assertEquals(
    build({ prompt: long }, { beyondPositions: true }).ids.length,
    71,
  );
  const cut = build({ prompt: long }, { truncate: "middle" });
  assertEquals(cut.truncated, true);
  assertEquals(cut.ids.length + 4 <= 64, true);
});

Deno.test("the reference's limits go by the model's name, the last match counts", () => {
  const limit = (name: string) =>
    build({ prompt: "Hi", name, maxNewTokens: 1 }, {
      maxPromptTokens: "reference",
    }).plan.maxPromptTokens;
  assertEquals(limit("Llama-2-7b"), 3950);
  assertEquals(limit("Meta-Llama-3-8B"), 7500);
  assertEquals(limit("Mistral-7B-llama3"), 31500);
  assertThrows(() => limit("qwen"), RangeError, '"qwen"');
});

Deno.test("the bundled model's prompts are its tokens after BOS, cut ones too", () => {
  const model = promptModel(
    openModelFolder(
      new URL("../../models/needle-6m", import.meta.url).pathname,
    ),
    "needle-6m",
  );
  const prompt = "The lamp is lit. ".repeat(40).trim();
  const example = { id: "x", prompt, answerPrefix: " So", maxNewTokens: 8 };
  const ids = (options: ProtocolOptions) =>
    buildPrompt(
      model,
      example,
      planPrompt(model, example, PROTOCOL_SCHEMA.parse(options)),
    ).ids;
  const whole = bundledCodec.encode(`${prompt} So`);
  assertEquals(ids({}), [1, ...whole]);
  const half = 20;
  const text = bundledCodec.decode(whole.slice(0, half - 1)) +
    bundledCodec.decode(whole.slice(-half));
  assertEquals(ids({ truncate: "middle", maxPromptTokens: 2 * half }), [
    1,
    ...bundledCodec.encode(text),
  ]);
});
