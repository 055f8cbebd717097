/**
 * The native library: devices, models, caches, sequences and decode.
 *
 * @module
 */
export { LibraryError, NativeError, type NativeErrorKind } from "./errors.ts";
export {
  Device,
  type DeviceInfo,
  type DeviceKind,
  type DeviceOptions,
  type SimdLevel,
} from "./device.ts";
export {
  type Dtype,
  NativeModel,
  type NativeModelConfig,
  type TensorName,
  type TensorPiece,
} from "./model.ts";
export { Cache, type CacheConfig, type Ledger, PAGE_ROWS } from "./cache.ts";
export {
  type LayerScope,
  type PromptOptions,
  type RecordedLayer,
  Sequence,
  type SequenceInfo,
} from "./sequence.ts";
export { Prefill, type PrefillOptions } from "./prefill.ts";
export type { CallOptions } from "./_control.ts";
export { GREEDY, type Sampling } from "./sampling.ts";
export {
  MAX_COLUMN_MASSES,
  type MergedObservation,
  mergeObservations,
} from "./observe.ts";
export {
  BOUND_BLOCKS,
  type Operation,
  type RecorderFacts,
  recordProgram,
  SEGMENT_ROWS,
} from "./program.ts";
export { ABI_VERSION } from "./_symbols.ts";
export { decode, type Decoded, type DecodeOptions } from "./decode.ts";
export type {
  Granularity,
  GroupReduce,
  LayerContext,
  ModelShape,
  Observation,
  Policy,
  QuerySet,
  Scores,
  Selection,
} from "../methods/types.ts";
