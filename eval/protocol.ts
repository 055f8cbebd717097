/**
 * How an example becomes the token ids that a model sees: chat form, truncation in the middle, limits. Every switch is
 * an option, and what it came to is written into every record.
 *
 * @module
 */
import { z } from "zod";
import type { ModelFolder, Tokenizer } from "../models/mod.ts";
import type { Example } from "../tasks/types.ts";

/** Switches of {@linkcode buildPrompt}. */
export const PROTOCOL_SCHEMA = z.strictObject({
  chat: z.enum(["auto", "always", "never", "reference"]).default("auto")
    .describe(
      "Chat form: auto (the model's template, where it has one and the example is no text to be continued), always, never, or reference (by the model's name, as KVCache-Factory does)",
    ),
  maxPromptTokens: z.union([
    z.int().min(2),
    z.enum(["model", "reference"]),
  ]).default("model").describe(
    "Longest prompt: a number, model (the model's positions less the new tokens), or reference (KVCache-Factory's table by the model's name)",
  ),
  truncate: z.enum(["middle", "refuse"]).default("refuse").describe(
    "What happens to longer prompts: their middle is cut out, or the run is refused",
  ),
  minNewTokens: z.int().min(0).default(0).describe(
    "New tokens before an answer may end",
  ),
  beyondPositions: z.boolean().default(false).describe(
    "Allow prompts and answers beyond the positions that the model was made for; longer prompts are then not cut either, unless maxPromptTokens is a number",
  ),
}) satisfies z.ZodType<Protocol, ProtocolOptions>;

/** Switches that differ from the defaults in LongBench. */
export const LONGBENCH_PROTOCOL = {
  truncate: "middle",
  minNewTokens: 1,
} as const;

/** Switches, as given; defaults stand in the descriptions of `PROTOCOL_SCHEMA`. */
export interface ProtocolOptions {
  /** Chat form. Default: `auto`. */
  chat?: "auto" | "always" | "never" | "reference" | undefined;
  /** Longest prompt, tokens, or whose rule says so. Default: `model`. */
  maxPromptTokens?: number | "model" | "reference" | undefined;
  /** What happens to longer prompts. Default: `refuse`. */
  truncate?: "middle" | "refuse" | undefined;
  /** New tokens before an answer may end. Default: 0. */
  minNewTokens?: number | undefined;
  /** Whether prompts and answers may exceed the model's positions. Default: false. */
  beyondPositions?: boolean | undefined;
}
/** Switches, resolved. */
export type Protocol = {
  [K in keyof ProtocolOptions]-?: Exclude<ProtocolOptions[K], undefined>;
};

/** What surrounds a prompt. */
export type ChatForm = "none" | "template" | "llama3" | "llama2";

/** What the switches come to for one example; decides the prompt together with model and example. */
export interface PromptPlan {
  /** What surrounds the prompt. */
  chat: ChatForm;
  /**
   * Tokens above which a prompt is too long, its BOS token included and what a chat form adds afterwards left out;
   * `null` for no limit.
   */
  maxPromptTokens: number | null;
  /** What happens above them. */
  truncate: Protocol["truncate"];
  /** Whether the model's positions may be exceeded. */
  beyondPositions: boolean;
}

/** A prompt as the model sees it. */
export interface BuiltPrompt {
  /** Token ids. */
  ids: number[];
  /** Tokens before truncation, chat form left out. */
  fullTokens: number;
  /** Whether the middle was cut out. */
  truncated: boolean;
}

/** What of a model the prompt depends on. */
export interface PromptModel {
  /** Name that the `reference` rules look at: the folder's. */
  name: string;
  /** Its tokenizer. */
  tokenizer: Tokenizer;
  /** Positions that it was made for. */
  maxPositions: number;
}

/** Tokens kept free for halves that encode to more tokens than they were cut from. */
const MARGIN = 8;

/** KVCache-Factory's longest prompts: the last entry whose text is in the model's name counts. */
const REFERENCE_LIMITS: readonly [names: string[], limit: number][] = [
  [["llama2", "llama-2"], 3950],
  [["llama3", "llama-3"], 7500],
  [["mistral"], 31500],
];

/** The parts of a model folder that prompts depend on. */
export function promptModel(
  folder: Pick<ModelFolder, "tokenizer" | "config">,
  name: string,
): PromptModel {
  if (!folder.tokenizer) {
    throw new RangeError(
      "Cannot run a task as the model must have a tokenizer: tokenizer.json is missing",
    );
  }
  return {
    name,
    tokenizer: folder.tokenizer,
    maxPositions: folder.config.maxPositions,
  };
}

/**
 * Resolves the switches for one example.
 *
 * @throws {RangeError} The model lacks what a switch needs.
 */
export function planPrompt(
  model: PromptModel,
  example: Pick<Example, "completion" | "maxNewTokens">,
  protocol: Protocol,
): PromptPlan {
  const chat = chatForm(model, example, protocol.chat);
  return {
    chat,
    maxPromptTokens: limitOf(model, example, protocol, chat),
    truncate: protocol.truncate,
    beyondPositions: protocol.beyondPositions,
  };
}

function chatForm(
  { name, tokenizer }: PromptModel,
  { completion = false }: Pick<Example, "completion">,
  chat: Protocol["chat"],
): ChatForm {
  switch (chat) {
    case "never":
      return "none";
    case "auto":
      return tokenizer.hasChatTemplate && !completion ? "template" : "none";
    case "always":
      if (tokenizer.hasChatTemplate) return "template";
      throw new RangeError(
        `Cannot wrap prompts as the model must have a chat template: "${name}" has none`,
      );
    case "reference": {
      const lower = name.toLowerCase();
      if (/llama-?3/.test(lower) && !completion) return "llama3";
      return lower.includes("llama2") ? "llama2" : "none";
    }
  }
}

function limitOf(
  model: PromptModel,
  { maxNewTokens }: Pick<Example, "maxNewTokens">,
  { maxPromptTokens, truncate, beyondPositions }: Protocol,
  chat: ChatForm,
): number | null {
  if (typeof maxPromptTokens === "number") return maxPromptTokens;
  if (maxPromptTokens === "reference") {
    const lower = model.name.toLowerCase();
    const found = REFERENCE_LIMITS.findLast(([names]) =>
      names.some((name) => lower.includes(name))
    );
    if (found) return found[1];
    throw new RangeError(
      `Cannot limit prompts as the reference does as the model's name must hold ${
        REFERENCE_LIMITS.flatMap(([names]) => names).join(", ")
      }: it is "${model.name}"`,
    );
  }
  if (beyondPositions) return null;
  // What the form adds to the tokens that the limit counts, which are those of the plain prompt with its BOS.
  const around = wrap(model.tokenizer, "", "", chat).length -
    model.tokenizer.encodePrompt("").length;
  const margin = truncate === "middle" ? MARGIN : 0;
  const limit = model.maxPositions - maxNewTokens - around - margin;
  if (limit >= 2) return limit;
  throw new RangeError(
    `Cannot run a task as the model's positions must hold ${maxNewTokens} new tokens and a prompt: "${model.name}" has ${model.maxPositions}`,
  );
}

/** The ids of a prompt inside its chat form, with the beginning of the answer. */
function wrap(
  tokenizer: Tokenizer,
  prompt: string,
  answerPrefix: string,
  chat: ChatForm,
): number[] {
  switch (chat) {
    case "none":
      return tokenizer.encodePrompt(prompt + answerPrefix);
    case "llama2":
      return tokenizer.encodePrompt(`${llama2(prompt)}${answerPrefix}`);
    case "template":
      return [
        ...tokenizer.encodeChat([{ role: "user", content: prompt }]),
        ...tokenizer.encode(answerPrefix, { specialTokens: false }),
      ];
    case "llama3":
      return tokenizer.encode(llama3(prompt, tokenizer) + answerPrefix, {
        specialTokens: false,
      });
  }
}

function llama2(prompt: string): string {
  return `[INST] ${prompt} [/INST]`;
}

function llama3(prompt: string, tokenizer: Tokenizer): string {
  const missing = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
  ].find((token) => tokenizer.id(token) === undefined);
  if (missing !== undefined) {
    throw new RangeError(
      `Cannot wrap prompts in the Llama 3 form as the vocabulary must hold its tokens: ${missing} is missing`,
    );
  }
  const header = (role: string) =>
    `<|start_header_id|>${role}<|end_header_id|>\n\n`;
  return `<|begin_of_text|>${header("user")}${prompt}<|eot_id|>${
    header("assistant")
  }`;
}

/**
 * Builds the prompt of an example.
 *
 * Truncation works on text, as LongBench does: the first and the last half of the allowed tokens are decoded, put
 * together without a separator and encoded again, so a prompt can come out some tokens longer or shorter than asked for.
 * The form of Llama 2 is put on before the cut, all others after it.
 *
 * @throws {RangeError} The prompt is too long and may not be cut, or exceeds the model's positions all the same.
 */
export function buildPrompt(
  model: PromptModel,
  example: Pick<Example, "id" | "prompt" | "answerPrefix" | "maxNewTokens">,
  { chat, maxPromptTokens, truncate, beyondPositions }: PromptPlan,
): BuiltPrompt {
  const { tokenizer } = model;
  // What is cut: the prompt alone where the answer's beginning stands in a turn of its own, else both together.
  const apart = chat === "template" || chat === "llama3";
  const answerPrefix = apart ? example.answerPrefix : "";
  let text = apart
    ? example.prompt
    : chat === "llama2"
    ? llama2(example.prompt) + example.answerPrefix
    : example.prompt + example.answerPrefix;
  const whole = tokenizer.encodePrompt(text);
  const cut = maxPromptTokens !== null && whole.length > maxPromptTokens;
  if (cut) {
    if (truncate === "refuse") {
      throw new RangeError(
        `Cannot run example "${example.id}" as its prompt must have at most ${maxPromptTokens} tokens: it has ${whole.length}`,
      );
    }
    const half = Math.floor(maxPromptTokens / 2);
    text = tokenizer.decode(whole.slice(0, half)) +
      tokenizer.decode(whole.slice(whole.length - half));
  }
  const ids = apart
    ? wrap(tokenizer, text, answerPrefix, chat)
    : cut
    ? tokenizer.encodePrompt(text)
    : whole;
  if (
    !beyondPositions && ids.length + example.maxNewTokens > model.maxPositions
  ) {
    throw new RangeError(
      `Cannot run example "${example.id}" as prompt and new tokens must fit in the model's ${model.maxPositions} positions: they have ${ids.length} + ${example.maxNewTokens}`,
    );
  }
  return { ids, fullTokens: whole.length, truncated: cut };
}
