/**
 * Views: what methods keep of a prompt, token by token, and the attention behind it.
 *
 * Permissions: those of the engine.
 *
 * @module
 */
export { captureView } from "./capture.ts";
export type { CaptureOptions } from "./capture.ts";
export { packView, unpackView } from "./pack.ts";
export { snapshotSummary } from "./summary.ts";
export type { SnapshotSummary } from "./summary.ts";
export { codeProbability, decodeProbability, strideOf } from "./types.ts";
export type {
  AttentionView,
  Snapshot,
  View,
  ViewConfiguration,
} from "./types.ts";
