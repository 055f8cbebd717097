/**
 * FullKV: keep every row. The baseline that all other methods are compared with.
 *
 * Paper: none; this is attention as the model defines it.
 * Acts: never.
 * Differs from the paper: nothing known.
 *
 * @module
 */
import { defineMethod, type Method } from "./define.ts";

/** {@linkcode fullkv} has no options. */
export type FullKvOptions = Record<never, never>;

/** The uncompressed cache. */
export const fullkv: Method<FullKvOptions> = defineMethod<FullKvOptions>({
  name: "fullkv",
  title: "FullKV",
  summary: "No compression",
  kind: "none",
  acts: "never",
  granularities: ["kv_head", "query_head"],
  differs: "nothing known",
  options: {},
  create() {
    return {};
  },
});
