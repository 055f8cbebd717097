/**
 * Loading models and generating with compressed caches.
 *
 * @module
 */
export { crossConfigurations, labelOf, labelsOf } from "./configurations.ts";
export { generate } from "./engine.ts";
export {
  type Answer,
  answerAll,
  leastBytes,
  type ScheduleOptions,
  sharedBytes,
} from "./scheduler.ts";
export {
  LanguageModel,
  type LanguageModelOptions,
  parseDevice,
} from "./language_model.ts";
export * from "./types.ts";
