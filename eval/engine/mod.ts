/**
 * Loading models and generating with compressed caches.
 *
 * @module
 */
export { crossConfigurations, labelOf } from "./configurations.ts";
export { generate } from "./engine.ts";
export {
  LanguageModel,
  type LoadOptions,
  parseDevice,
} from "./language_model.ts";
export * from "./types.ts";
