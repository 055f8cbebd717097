/**
 * Records of evaluations: what is written, where, and how it is found again.
 *
 * Permissions: read and write of the results folder; read alone for reports.
 *
 * @module
 */
export type { Example, Json } from "../../tasks/types.ts";
export { canonicalJson, contentHash, sha256 } from "./canonical.ts";
export {
  compactRows,
  comparableRecord,
  exampleHash,
  expandRows,
  jsonSchemas,
  parseRecord,
  parseRunMeta,
  RECORD_SCHEMA_VERSION,
  recordKey,
} from "./schema.ts";
export type {
  CacheFacts,
  EvalRecord,
  Hardware,
  JsonObject,
  KeyParts,
  RunMeta,
  StopReason,
  TimingFacts,
} from "./schema.ts";
export { claims, formatShard, parseShard, WHOLE } from "./shard.ts";
export type { Shard } from "./shard.ts";
export {
  readRecords,
  readRunMeta,
  RecordStore,
  StorageError,
} from "./store.ts";
export type { StoreOptions } from "./store.ts";
