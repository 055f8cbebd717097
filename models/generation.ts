/**
 * What `generation_config.json` says, and the tokens that end an answer.
 *
 * @module
 */
import { z } from "zod";
import { check } from "./_file.ts";
import { idList, tokenIds } from "./families/_decoder.ts";
import type { Tokenizer } from "./tokenizer.ts";
import type { ModelConfig } from "./types.ts";

/** How a model's makers generate with it. Nothing here acts by itself. */
export interface GenerationConfig {
  /** Tokens that end an answer: of this file, of `config.json`, of the tokenizer, and Llama 3's two. No duplicates. */
  stopIds: number[];
  /** Sample instead of taking the most likely token. */
  doSample?: boolean;
  /** Temperature. */
  temperature?: number;
  /** Most likely tokens to sample from. */
  topK?: number;
  /** Probability mass to sample from. */
  topP?: number;
}

const schema = z.looseObject({
  eos_token_id: tokenIds,
  do_sample: z.boolean().nullish(),
  temperature: z.number().min(0).max(1e6).nullish(),
  top_k: z.int().min(0).max(2 ** 31 - 1).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
});

/** Tokens that end a turn or a text wherever a vocabulary has them. */
const COMMON_STOPS = ["<|eot_id|>", "<|end_of_text|>"];

/**
 * Reads the content of a `generation_config.json` and collects the stop tokens.
 *
 * @param json The parsed file; an empty object where there is none.
 * @param file Its name, for errors.
 * @param config The model's shape.
 * @param tokenizer The model's tokenizer, if it has one.
 * @returns Stop tokens in the order in which they are found, and the suggested sampling.
 * @throws {SyntaxError} A field is wrong.
 */
export function parseGenerationConfig(
  json: Record<string, unknown>,
  file: string,
  config: ModelConfig,
  tokenizer?: Tokenizer,
): GenerationConfig {
  const raw = check(schema, json, file);
  const stops = new Set([...idList(raw.eos_token_id), ...config.eosIds]);
  if (tokenizer) {
    if (tokenizer.eosId !== undefined) stops.add(tokenizer.eosId);
    for (const token of COMMON_STOPS) {
      const id = tokenizer.id(token);
      if (id !== undefined && id !== tokenizer.unknownId) stops.add(id);
    }
  }
  return {
    // A token beyond the vocabulary can never be sampled.
    stopIds: [...stops].filter((id) => id < config.vocab),
    ...(raw.do_sample === undefined || raw.do_sample === null
      ? {}
      : { doSample: raw.do_sample }),
    ...(raw.temperature === undefined || raw.temperature === null
      ? {}
      : { temperature: raw.temperature }),
    ...(raw.top_k === undefined || raw.top_k === null
      ? {}
      : { topK: raw.top_k }),
    ...(raw.top_p === undefined || raw.top_p === null
      ? {}
      : { topP: raw.top_p }),
  };
}
