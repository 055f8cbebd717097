/**
 * The model shape of the CPU measurements, and what they have in common: prompts, clocks, medians.
 *
 * @module
 */
import { cpuUsage } from "node:process";

/** Sizes of a model, and nothing else: the weights are random. */
export interface PeerShape {
  /** Layers. */
  layers: number;
  /** Width of the residual stream. */
  hidden: number;
  /** Query heads. */
  queryHeads: number;
  /** KV heads. */
  kvHeads: number;
  /** Width of the MLP. */
  intermediate: number;
  /** Tokens of the vocabulary. */
  vocab: number;
  /** Longest context. */
  context: number;
}

/** The shape that is measured. */
export const SHAPE: PeerShape = {
  layers: 16,
  hidden: 1024,
  queryHeads: 16,
  kvHeads: 4,
  intermediate: 2816,
  vocab: 4096,
  context: 16384,
};

/**
 * Writes a `config.json` of a shape.
 * @param path the file
 * @param shape sizes
 * @param window sliding window of every layer, tokens; none when missing
 */
export function writeConfig(
  path: string,
  shape: PeerShape,
  window?: number,
): void {
  const family = window === undefined
    ? { "architectures": ["LlamaForCausalLM"], "model_type": "llama" }
    : {
      "architectures": ["MistralForCausalLM"],
      "model_type": "mistral",
      "sliding_window": window,
    };
  Deno.writeTextFileSync(
    path,
    JSON.stringify({
      ...family,
      "hidden_size": shape.hidden,
      "intermediate_size": shape.intermediate,
      "num_hidden_layers": shape.layers,
      "num_attention_heads": shape.queryHeads,
      "num_key_value_heads": shape.kvHeads,
      "vocab_size": shape.vocab,
      "max_position_embeddings": shape.context,
      "rms_norm_eps": 1e-5,
      "rope_theta": 10000,
      "hidden_act": "silu",
      "tie_word_embeddings": false,
      "torch_dtype": "bfloat16",
      "bos_token_id": 1,
      "eos_token_id": 2,
    }),
  );
}

/** Ids of a prompt; any do for timing. */
export function prompt(length: number): number[] {
  return Array.from(
    { length },
    (_, i) => 259 + (i * 7919) % (SHAPE.vocab - 259),
  );
}

/** One repetition, in milliseconds: by the wall's clock, and of all threads of this process. */
export interface Time {
  /** By the wall's clock. */
  wall: number;
  /** Processor time of all threads. */
  cpu: number;
}

/** Times some work. */
export async function timed(work: () => void | Promise<void>): Promise<Time> {
  const before = cpuUsage(), started = performance.now();
  await work();
  const wall = performance.now() - started, spent = cpuUsage(before);
  return { wall, cpu: (spent.user + spent.system) / 1e3 };
}

/** The middle one, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? sorted[middle]!
    : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
