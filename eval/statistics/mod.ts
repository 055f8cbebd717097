/**
 * Statistics of evaluations: intervals, paired comparisons and planning. Deterministic by seed.
 *
 * Permissions: none.
 *
 * @module
 */
export { bootstrapMean, pairedDifference } from "./bootstrap.ts";
export type {
  BootstrapOptions,
  Estimate,
  PairedEstimate,
  PairedOptions,
  ScoresByExample,
} from "./bootstrap.ts";
export { compareAll, holm } from "./compare.ts";
export type { CompareOptions, Comparison } from "./compare.ts";
export {
  mean,
  normalCdf,
  normalQuantile,
  standardDeviation,
  standardError,
} from "./describe.ts";
export { detectableEffect, requiredExamples } from "./power.ts";
export type { PowerOptions } from "./power.ts";
