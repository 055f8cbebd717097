/**
 * Writes a GGUF v3 file of a Llama model with random weights: what the peer of the speed comparison reads.
 *
 * @module
 */

import type { PeerShape } from "./shape.ts";

const ALIGNMENT = 32;
/** Type numbers of the format. */
const U32 = 4, I32 = 5, F32 = 6, STRING = 8, ARRAY = 9;
const TENSOR_F32 = 0, TENSOR_BF16 = 30;
/** Kinds of vocabulary entries: normal, unknown, control, byte. */
const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6;

/** Collects little-endian bytes. */
class Writer {
  #parts: Uint8Array[] = [];
  /** Bytes so far. */
  size = 0;

  push(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.size += bytes.length;
  }

  u32(...values: number[]): void {
    this.push(new Uint8Array(Uint32Array.from(values).buffer));
  }

  u64(...values: number[]): void {
    this.push(new Uint8Array(BigUint64Array.from(values, BigInt).buffer));
  }

  f32(...values: number[]): void {
    this.push(new Uint8Array(Float32Array.from(values).buffer));
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.push(bytes);
  }

  bytes(): Uint8Array {
    const all = new Uint8Array(this.size);
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

/** A tensor's name and dimensions, the fastest first. */
interface TensorPlan {
  name: string;
  dims: number[];
}

function tensors(shape: PeerShape): TensorPlan[] {
  const { hidden, intermediate, vocab, queryHeads, kvHeads } = shape;
  const kv = hidden / queryHeads * kvHeads;
  const block: [string, number[]][] = [
    ["attn_norm", [hidden]],
    ["attn_q", [hidden, hidden]],
    ["attn_k", [hidden, kv]],
    ["attn_v", [hidden, kv]],
    ["attn_output", [hidden, hidden]],
    ["ffn_norm", [hidden]],
    ["ffn_gate", [hidden, intermediate]],
    ["ffn_up", [hidden, intermediate]],
    ["ffn_down", [intermediate, hidden]],
  ];
  return [
    { name: "token_embd.weight", dims: [hidden, vocab] },
    { name: "output_norm.weight", dims: [hidden] },
    { name: "output.weight", dims: [hidden, vocab] },
    ...Array.from(
      { length: shape.layers },
      (_, i) =>
        block.map(([name, dims]) => ({
          name: `blk.${i}.${name}.weight`,
          dims,
        })),
    ).flat(),
  ];
}

/** Metadata entries: the architecture's sizes and a vocabulary of bytes and fillers. */
function writeMetadata(w: Writer, shape: PeerShape): number {
  let count = 0;
  const key = (name: string, type: number) => {
    w.string(name);
    w.u32(type);
    count++;
  };
  const text = (name: string, value: string) => {
    key(name, STRING);
    w.string(value);
  };
  const u32 = (name: string, value: number) => {
    key(name, U32);
    w.u32(value);
  };
  const f32 = (name: string, value: number) => {
    key(name, F32);
    w.f32(value);
  };
  text("general.architecture", "llama");
  text("general.name", "random weights");
  u32("general.alignment", ALIGNMENT);
  u32("llama.context_length", shape.context);
  u32("llama.embedding_length", shape.hidden);
  u32("llama.block_count", shape.layers);
  u32("llama.feed_forward_length", shape.intermediate);
  u32("llama.attention.head_count", shape.queryHeads);
  u32("llama.attention.head_count_kv", shape.kvHeads);
  u32("llama.rope.dimension_count", shape.hidden / shape.queryHeads);
  u32("llama.vocab_size", shape.vocab);
  f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
  f32("llama.rope.freq_base", 10000);
  text("tokenizer.ggml.model", "llama");
  u32("tokenizer.ggml.unknown_token_id", 0);
  u32("tokenizer.ggml.bos_token_id", 1);
  u32("tokenizer.ggml.eos_token_id", 2);
  const entry = (i: number): [string, number] =>
    i === 0
      ? ["<unk>", UNKNOWN]
      : i < 3
      ? [i === 1 ? "<s>" : "</s>", CONTROL]
      : i < 259
      ? [`<0x${(i - 3).toString(16).toUpperCase().padStart(2, "0")}>`, BYTE]
      : [`filler${i}`, NORMAL];
  const entries = Array.from({ length: shape.vocab }, (_, i) => entry(i));
  key("tokenizer.ggml.tokens", ARRAY);
  w.u32(STRING);
  w.u64(entries.length);
  for (const [token] of entries) w.string(token);
  key("tokenizer.ggml.scores", ARRAY);
  w.u32(F32);
  w.u64(entries.length);
  w.f32(...entries.map((_, i) => -i));
  key("tokenizer.ggml.token_type", ARRAY);
  w.u32(I32);
  w.u64(entries.length);
  w.u32(...entries.map(([, type]) => type));
  return count;
}

function align(size: number): number {
  return Math.ceil(size / ALIGNMENT) * ALIGNMENT;
}

/** Random BF16 numbers in [-scale, scale), from a fixed sequence: timing on zeros would flatter. */
function randomBf16(count: number): (scale: number) => Uint8Array {
  const draws = new Float32Array(count);
  let state = 0x2545f491;
  for (let i = 0; i < count; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    draws[i] = (state >>> 0) / 2 ** 31 - 1;
  }
  return (scale) => {
    const scaled = new Uint32Array(draws.map((x) => x * scale).buffer);
    return new Uint8Array(Uint16Array.from(scaled, (u) => u >>> 16).buffer);
  };
}

/** Writes the model; matrices are BF16, norms F32 ones. */
export function writeRandomGguf(path: string, shape: PeerShape): void {
  const plans = tensors(shape);
  const body = new Writer();
  const count = writeMetadata(body, shape);
  let offset = 0;
  for (const { name, dims } of plans) {
    body.string(name);
    body.u32(dims.length);
    body.u64(...dims);
    body.u32(dims.length === 1 ? TENSOR_F32 : TENSOR_BF16);
    body.u64(offset);
    offset = align(offset + byteSize(dims));
  }
  const head = new Writer();
  head.push(new TextEncoder().encode("GGUF"));
  head.u32(3);
  head.u64(plans.length, count);
  head.push(body.bytes());
  head.push(new Uint8Array(align(head.size) - head.size));
  using file = Deno.openSync(path, {
    write: true,
    create: true,
    truncate: true,
  });
  const write = (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) {
      at += file.writeSync(bytes.subarray(at));
    }
  };
  write(head.bytes());
  const random = randomBf16(1 << 20);
  for (const { dims } of plans) {
    const size = byteSize(dims);
    if (dims.length === 1) {
      write(new Uint8Array(new Float32Array(dims[0]!).fill(1).buffer));
    } else {
      // A uniform draw of variance 1 / columns keeps activations near 1.
      const block = random(Math.sqrt(3 / dims[0]!));
      for (let at = 0; at < size; at += block.length) {
        write(block.subarray(0, Math.min(block.length, size - at)));
      }
    }
    write(new Uint8Array(align(size) - size));
  }
}

function byteSize(dims: number[]): number {
  const elements = dims.reduce((product, n) => product * n, 1);
  return elements * (dims.length === 1 ? 4 : 2);
}
