/**
 * Compression methods: the contract, the helpers to write one, and those that come with the project.
 *
 * @module
 */
export type {
  DecodeRecorder,
  DirectionSharing,
  EvictOptions,
  Granularity,
  GroupReduce,
  LayerContext,
  Method,
  ModelShape,
  Observation,
  OptionSchema,
  OptionSpec,
  PackedPart,
  PackFormat,
  PageOptions,
  Policy,
  QuerySet,
  Scores,
  Selection,
  Sparsity,
  Statistic,
} from "./types.ts";
export {
  choice,
  defineMethod,
  file,
  flag,
  integer,
  integers,
  real,
  text,
} from "./define.ts";
export {
  fileOptions,
  type OptionFlag,
  optionFlags,
  resolveOptions,
} from "./options.ts";
export {
  type AnyMethod,
  isMethodPath,
  loadMethod,
  type MethodFile,
  methodFile,
  METHODS,
  resolveMethod,
} from "./registry.ts";
export { adakv, type AdaKvOptions, type AdaptiveOptions } from "./adakv.ts";
export { cam, type CamOptions, type ValueMergeOptions } from "./cam.ts";
export { headkv, type HeadKvOptions, type HeadTableOptions } from "./headkv.ts";
export { minicache, type MiniCacheOptions } from "./minicache.ts";
export { minference, type MInferenceOptions } from "./minference.ts";
export { nacl, type NaclOptions, type ProxyOptions } from "./nacl.ts";
export type { PatternName } from "./parts/pattern_file.ts";
export type { Merge } from "./parts/merge.ts";
export type { RandomPart } from "./parts/choose.ts";
export { fullkv, type FullKvOptions } from "./fullkv.ts";
export { gear, type GearOptions } from "./gear.ts";
export { kivi, type KiviOptions } from "./kivi.ts";
export { kvquant, type KvQuantOptions } from "./kvquant.ts";
export { think, type ThinkOptions } from "./think.ts";
export { h2o, type H2oOptions, type HeavyHitterOptions } from "./h2o.ts";
export { type KeyNormOptions, l2norm, type L2NormOptions } from "./l2norm.ts";
export {
  pyramidkv,
  type PyramidKvOptions,
  type PyramidOptions,
} from "./pyramidkv.ts";
export {
  defineEviction,
  type EvictionOptions,
  type EvictionSpec,
  type FixedBudgets,
  type Protected,
  type StepEviction,
} from "./parts/evict.ts";
export {
  adaptive,
  type BudgetNeeds,
  type BudgetOptions,
  type Budgets,
  type Demand,
  pyramid,
  table,
  UNIFORM,
} from "./parts/budgets.ts";
export { QUANT_OPTION, type Quantiser, quantiserOf } from "./parts/quant.ts";
export { VOTE_OPTIONS, type VoteOptions, windowVotes } from "./parts/votes.ts";
export { quest, type QuestOptions } from "./quest.ts";
export {
  type PersistenceOptions,
  scissorhands,
  type ScissorhandsOptions,
} from "./scissorhands.ts";
export { snapkv, type SnapKvOptions } from "./snapkv.ts";
export {
  type SinkOptions,
  streamingllm,
  type StreamingLlmOptions,
} from "./streamingllm.ts";
