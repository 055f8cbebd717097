/**
 * KVCache-Factory for Deno: run, compare and invent KV-cache compression methods.
 *
 * ```ts ignore
 * import { crossConfigurations, generate, LanguageModel, snapkv } from "./mod.ts";
 *
 * using model = await LanguageModel.load("models/needle-6m");
 * const prompt = model.folder.tokenizer!.encodePrompt("...");
 * const [answer] = await generate(model, prompt, crossConfigurations([snapkv], [64], {}, "kv_head"));
 * console.log(answer!.tokens, answer!.cache.residentBytes);
 * ```
 *
 * @module
 */
export * from "./eval/engine/mod.ts";
export { type Applied, applyMethod, type ApplyRequest } from "./eval/apply.ts";
export * from "./methods/mod.ts";
export * from "./ffi/mod.ts";
export * from "./models/mod.ts";
