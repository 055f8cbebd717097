// deno-lint-ignore-file camelcase -- the golden file has the reference's names
/**
 * The recorded cases of the reference's methods, and our names for their options.
 *
 * @module
 */
import { fromFileUrl } from "@std/path";
import type { Granularity } from "../../methods/mod.ts";
import { readSafetensorsHeader, readTensor } from "../../models/safetensors.ts";

/** One case. */
export interface Golden {
  case: string;
  input: string;
  method: string;
  stored?: boolean;
  options: {
    max_capacity_prompt: number;
    window_size: number;
    head_capacity?: number[];
    start_budget_ratio?: number;
    token_budget?: number;
    proxy_size?: number;
    mode?: "suffix" | "prefix" | "edges";
    sink_size?: number;
    history_window?: number | null;
    recent_size?: number;
    page_size?: number;
    kernel_size?: number;
    pooling?: string;
    granularity: Granularity;
    gqa_score_agg: "mean" | "max" | "sum";
    merge?: string | null;
    layer_idx?: number;
    num_hidden_layers?: number;
    skip_layers?: number[];
    floor_ratio?: number;
    normalize?: boolean | null;
    ratio?: number;
    interpolation?: number;
    retention_ratio?: number;
  };
  indices?: number[][];
}

const folder = new URL("../goldens/methods/", import.meta.url);
/** All cases. */
export const cases: Golden[] = JSON.parse(
  Deno.readTextFileSync(new URL("methods.json", folder)),
);

/** The tensors' file. */
export const GOLDEN_TENSORS = fromFileUrl(
  new URL("methods.safetensors", folder),
);

/** Its header. */
export const header = readSafetensorsHeader(GOLDEN_TENSORS);

/** Tensors and shape of an input. */
export function input(name: string) {
  const q = readTensor(header, `${name}.q`);
  const k = readTensor(header, `${name}.k`);
  const v = readTensor(header, `${name}.v`);
  const [queryHeads = 0, tokens = 0, headDim = 0] = q.shape;
  const [kvHeads = 0] = k.shape;
  return {
    q: q.data,
    k: k.data,
    v: v.data,
    tokens,
    shape: { queryHeads, kvHeads, headDim },
  };
}

/** Our names for the reference's options. */
export function ourOptions(
  { method, options }: Golden,
): Record<string, unknown> {
  const budget = options.max_capacity_prompt;
  const merge = options.merge ?? "none";
  const groupReduce = options.gqa_score_agg;
  const window = options.window_size;
  switch (method) {
    case "streamingllm":
      return { budget, sinks: budget - window, merge };
    case "h2o":
      return { budget, window, groupReduce, merge };
    case "l2norm":
      return { budget, skipLayers: options.skip_layers };
    case "cam": {
      const startRatio = options.start_budget_ratio;
      return { budget, window, groupReduce, startRatio, draws: "threshold" };
    }
    case "quest":
      return {
        budget: options.token_budget,
        pageSize: options.page_size,
        window: options.recent_size,
        denseLayers: 0,
        compat: "reference",
      };
    case "scissorhands":
      return {
        budget: options.token_budget,
        historyWindow: options.history_window ?? 0,
        sinks: options.sink_size,
        window: options.recent_size,
      };
    case "think":
      return {
        budget,
        observationWindow: window,
        poolWidth: options.kernel_size,
        pool: options.pooling === "maxpool" ? "max" : "avg",
        pruneRatio: options.ratio,
        fullRows: options.recent_size,
        compat: "reference",
      };
    case "minicache":
      return {
        interpolation: options.interpolation,
        keepRatio: options.retention_ratio,
        firstShare: 0,
      };
    case "nacl":
      return {
        budget: options.token_budget,
        proxies: options.proxy_size,
        proxyMode: options.mode,
        sinks: options.sink_size,
      };
  }
  return {
    ...(method === "adakv"
      ? { floor: options.floor_ratio, concentrate: options.normalize ?? false }
      : {}),
    ...(method === "headkv" ? { headRows: options.head_capacity } : { merge }),
    budget,
    observationWindow: window,
    poolWidth: options.kernel_size,
    pool: options.pooling === "maxpool" ? "max" : "avg",
    groupReduce,
  };
}

/** A stored output of the reference, one list of rows per head. */
export function storedRows(name: string, role: string): Float32Array[][] {
  const { data, shape } = readTensor(header, `${name}.${role}`);
  const [heads = 0, rows = 0, dim = 0] = shape;
  return Array.from({ length: heads }, (_, h) =>
    Array.from(
      { length: rows },
      (_, r) => data.subarray((h * rows + r) * dim, (h * rows + r + 1) * dim),
    ));
}
