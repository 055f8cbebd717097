/**
 * Compression methods: the contract, the helpers to write one, and those that come with the project.
 *
 * @module
 */
export type {
  Granularity,
  GroupReduce,
  LayerContext,
  Method,
  ModelShape,
  Observation,
  OptionSchema,
  OptionSpec,
  Policy,
  QuerySet,
  Scores,
  Selection,
} from "./types.ts";
export {
  choice,
  defineMethod,
  flag,
  integer,
  integers,
  real,
} from "./define.ts";
export { type OptionFlag, optionFlags, resolveOptions } from "./options.ts";
export {
  type AnyMethod,
  isMethodPath,
  loadMethod,
  METHODS,
  resolveMethod,
} from "./registry.ts";
export { fullkv, type FullKvOptions } from "./fullkv.ts";
export { snapkv, type SnapKvOptions } from "./snapkv.ts";
export { streamingllm, type StreamingLlmOptions } from "./streamingllm.ts";
