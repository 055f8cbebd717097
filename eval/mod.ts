/**
 * Evaluation: the generation engine, metrics, records, statistics, tables, plots, reports and sweeps.
 *
 * @module
 */
export * from "./engine/mod.ts";
export * from "./evaluate.ts";
export * from "./metrics/mod.ts";
export * from "./plots/mod.ts";
export * from "./prepare.ts";
export * from "./probe.ts";
export type { BuiltPrompt, Protocol, ProtocolOptions } from "./protocol.ts";
export * from "./provenance/mod.ts";
export * from "./records/mod.ts";
export * from "./report/mod.ts";
export * from "./runner.ts";
export * from "./statistics/mod.ts";
export * from "./sweep/mod.ts";
export * from "./tables/mod.ts";
