/**
 * KVCache-Factory for Deno: run, compare and invent KV-cache compression methods.
 *
 * - {@linkcode evaluate} runs tasks with methods and budgets and returns a table, plots and a manifest;
 * - {@linkcode generate} continues a prompt with several compressed caches at once;
 * - {@linkcode defineEviction} and {@linkcode defineMethod} make methods;
 * - {@linkcode probe} runs a method on recorded tensors.
 *
 * ```ts ignore
 * import { evaluate } from "@kvcache-factory/kvf";
 *
 * const { table } = await evaluate({
 *   model: "models/needle-6m",
 *   tasks: ["vt"],
 *   methods: ["snapkv", "h2o"],
 *   budgets: [64, 128],
 * });
 * console.log(table);
 * ```
 *
 * What lies deeper has entry points of its own: `./methods`, `./eval`, `./tasks`, `./models`, `./ffi`.
 *
 * @module
 */
export {
  evaluate,
  type EvaluateRequest,
  type Evaluation,
  type EvaluationRow,
  type TaskRequest,
} from "./eval/evaluate.ts";
export { probe, type Probed, type ProbeRequest } from "./eval/probe.ts";
export { type Applied, applyMethod, type ApplyRequest } from "./eval/apply.ts";
export * from "./eval/engine/mod.ts";
export {
  type Plot,
  type PngOptions,
  renderPng,
  renderSvg,
} from "./eval/plots/mod.ts";
export {
  type CacheFacts,
  type EvalRecord,
  type Hardware,
  type Json,
  type JsonObject,
  type KeyParts,
  RECORD_SCHEMA_VERSION,
  type RunMeta,
  type StopReason,
  type TimingFacts,
} from "./eval/records/mod.ts";
export type { Difference, Figure, Score } from "./eval/report/mod.ts";
export type { Estimate, PairedEstimate } from "./eval/statistics/mod.ts";
export * from "./methods/mod.ts";
export {
  Device,
  type DeviceInfo,
  type DeviceKind,
  type DeviceOptions,
  type Ledger,
  LibraryError,
  NativeError,
  type NativeErrorKind,
  type Sampling,
} from "./ffi/mod.ts";
export {
  type ChatMessage,
  type ModelFolder,
  openModelFolder,
  readTensor,
  type Tensor,
  Tokenizer,
  writeSafetensors,
} from "./models/mod.ts";
