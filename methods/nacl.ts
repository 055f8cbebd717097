/**
 * NACL: keep what a few proxy tokens attend to, and some of the rest by lot.
 *
 * The queries of proxy tokens (usually the question at the end) score every row with their attention probabilities; the
 * best are kept. A part of the budget is drawn at random from the others, likelier with higher scores, so that tokens
 * which the proxies overlook have a chance in every layer and head.
 *
 * Paper: https://arxiv.org/abs/2408.03675
 * Acts: once per layer, when prefill ends. Decode appends and never evicts.
 * Differs from the paper: proxies are always kept themselves, as in KVCache-Factory; the scores are probabilities after
 * the softmax, summed over the proxies.
 *
 * @module
 */
import { choice, integer, type Method, real } from "./define.ts";
import type { BudgetOptions } from "./parts/budgets.ts";
import { defineEviction, type EvictionOptions } from "./parts/evict.ts";
import { GROUP_REDUCE } from "./parts/votes.ts";
import type { GroupReduce, QuerySet } from "./types.ts";

/** Options that only {@linkcode nacl} has. */
export interface ProxyOptions {
  /** Proxy tokens; always kept themselves. */
  proxies: number;
  /** Where they are: at the end, at the start, or at the end with the sinks at the start. */
  proxyMode: "suffix" | "prefix" | "edges";
  /** First tokens that are proxies as well, with `edges`. */
  sinks: number;
  /** Rows per head that are drawn at random. */
  randomRows: number;
  /** Weights of the draw are `exp(score / temperature)`; 0: all equal. */
  temperature: number;
  /** Seed of the draw. */
  seed: number;
  /** Reduction over the query heads of one KV head. */
  groupReduce: GroupReduce;
}

/** Options of {@linkcode nacl}. */
export type NaclOptions = ProxyOptions & EvictionOptions & BudgetOptions;

function proxySet({ proxyMode, proxies, sinks }: ProxyOptions): QuerySet {
  if (proxyMode === "prefix") return { prefix: proxies };
  return proxyMode === "edges" && sinks > 0
    ? { prefix: sinks, suffix: proxies }
    : { suffix: proxies };
}

/** The NACL method. */
export const nacl: Method<NaclOptions> = defineEviction<ProxyOptions>({
  name: "nacl",
  title: "NACL",
  summary: "Tokens that proxy tokens attend to, and some at random",
  paper: "https://arxiv.org/abs/2408.03675",
  differs: "proxies are always kept themselves, as in KVCache-Factory",
  options: {
    proxies: integer("Proxy tokens; always kept", {
      min: 1,
      default: 8,
      source: "the window of KVCache-Factory c97f9d7, run_longbench.py",
    }),
    proxyMode: choice(
      "Where proxies are: suffix, prefix, or edges (the suffix and the sinks)",
      ["suffix", "prefix", "edges"],
      { default: "suffix", source: "KVCache-Factory c97f9d7, nacl" },
    ),
    sinks: integer("First tokens that are proxies as well, with edges", {
      default: 0,
      source: "KVCache-Factory c97f9d7, nacl",
    }),
    randomRows: integer("Rows per head that are drawn at random", {
      default: 0,
      source: "KVCache-Factory c97f9d7, nacl",
    }),
    temperature: real("Weights of the draw are exp(score / temperature)", {
      min: 0,
      default: 1,
      source: "KVCache-Factory c97f9d7, nacl",
    }),
    seed: integer("Seed of the draw", { default: 0 }),
    groupReduce: GROUP_REDUCE,
  },
  check({ proxyMode, sinks }) {
    if (proxyMode === "edges" || sinks === 0) return;
    throw new RangeError(
      `Cannot run "nacl" with sinks as proxyMode must be edges: it is "${proxyMode}"`,
    );
  },
  observe: (options) => ({ columnMasses: [proxySet(options)] }),
  protect: ({ proxyMode, proxies, sinks }) =>
    proxyMode === "prefix"
      ? { first: proxies }
      : { first: sinks, last: proxies },
  protectedAlone: true,
  sampling: ({ randomRows, temperature, seed }) => ({
    rows: randomRows,
    temperature,
    seed,
  }),
  score: (layer, options) =>
    layer.columnMass(proxySet(options), options.groupReduce),
});
