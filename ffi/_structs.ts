// deno-lint-ignore-file camelcase -- fields are named as in csrc/kvf.h
/**
 * The structs of csrc/kvf.h as field lists, and their packing into bytes under C's alignment rules (little-endian).
 * `tests/ffi/structs_test.ts` compares the lists with the header.
 *
 * @module
 */

/** Type of a field: `uint32_t`, `float`, `double` or `char[128]`. */
export type FieldType = "u32" | "f32" | "f64" | "char128";

/** Fields in order, named as in C. The first is always `size`. */
export type Fields = readonly (readonly [name: string, type: FieldType])[];

type Value<T extends FieldType> = T extends "char128" ? string : number;
type Row<F extends Fields> = {
  [E in F[number] as E[0]]: Value<E[1]>;
};

const WIDTH = { u32: 4, f32: 4, f64: 8, char128: 1 } as const;
const LENGTH = { u32: 4, f32: 4, f64: 8, char128: 128 } as const;

/** A struct: its fields with offsets, its size, and both directions of conversion. */
export class Struct<const F extends Fields> {
  /** The fields in order. */
  readonly fields: F;
  /** Offset of each field, bytes. */
  readonly offsets: readonly number[];
  /** Size of the struct, bytes, with tail padding. */
  readonly size: number;

  /** Lays the fields out. */
  constructor(fields: F) {
    this.fields = fields;
    let offset = 0;
    let widest = 1;
    this.offsets = fields.map(([, type]) => {
      const width = WIDTH[type];
      widest = Math.max(widest, width);
      const at = Math.ceil(offset / width) * width;
      offset = at + LENGTH[type];
      return at;
    });
    this.size = Math.ceil(offset / widest) * widest;
  }

  /** Zeroes with the size field set: what the library fills in. */
  empty(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.size);
    new DataView(bytes.buffer).setUint32(0, this.size, true);
    return bytes;
  }

  /** Packs the values of all numeric fields but `size`. */
  encode(values: Omit<Row<F>, "size">): Uint8Array<ArrayBuffer> {
    const bytes = this.empty();
    const view = new DataView(bytes.buffer);
    this.fields.forEach(([name, type], i) => {
      if (name === "size") return;
      const value = (values as Record<string, number>)[name];
      const at = this.offsets[i];
      if (value === undefined || at === undefined) {
        throw new TypeError(
          `Cannot encode struct as a field is missing: ${name}`,
        );
      }
      if (type === "u32") view.setUint32(at, value, true);
      else if (type === "f32") view.setFloat32(at, value, true);
      else if (type === "f64") view.setFloat64(at, value, true);
      else {throw new TypeError(
          `Cannot encode struct as a field is text: ${name}`,
        );}
    });
    return bytes;
  }

  /** Unpacks what the library wrote. */
  decode(bytes: Uint8Array<ArrayBuffer>): Row<F> {
    const view = new DataView(bytes.buffer, bytes.byteOffset, this.size);
    const row: Record<string, number | string> = {};
    this.fields.forEach(([name, type], i) => {
      const at = this.offsets[i] ?? 0;
      if (type === "u32") row[name] = view.getUint32(at, true);
      else if (type === "f32") row[name] = view.getFloat32(at, true);
      else if (type === "f64") row[name] = view.getFloat64(at, true);
      else row[name] = text(bytes.subarray(at, at + LENGTH[type]));
    });
    return row as Row<F>;
  }
}

/** The UTF-8 text before the first NUL. */
export function text(bytes: Uint8Array<ArrayBuffer>): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** `kvf_device_options` */
export const DEVICE_OPTIONS = new Struct([
  ["size", "u32"],
  ["ordinal", "u32"],
  ["n_thread", "u32"],
  ["simd", "u32"],
]);

/** `kvf_device_info` */
export const DEVICE_INFO = new Struct([
  ["size", "u32"],
  ["kind", "u32"],
  ["n_thread", "u32"],
  ["simd", "u32"],
  ["capability", "u32"],
  ["blas", "u32"],
  ["total_bytes", "f64"],
  ["free_bytes", "f64"],
  ["name", "char128"],
]);

/** `kvf_model_config` */
export const MODEL_CONFIG = new Struct([
  ["size", "u32"],
  ["n_layer", "u32"],
  ["hidden", "u32"],
  ["n_head", "u32"],
  ["n_kv_head", "u32"],
  ["head_dim", "u32"],
  ["intermediate", "u32"],
  ["vocab", "u32"],
  ["weight_dtype", "u32"],
  ["flags", "u32"],
  ["n_expert", "u32"],
  ["n_expert_used", "u32"],
  ["norm_eps", "f32"],
  ["rope_scale", "f32"],
]);

/** `kvf_cache_config` */
export const CACHE_CONFIG = new Struct([
  ["size", "u32"],
  ["n_layer", "u32"],
  ["n_head", "u32"],
  ["n_kv_head", "u32"],
  ["head_dim", "u32"],
  ["row_dtype", "u32"],
  ["limit_bytes", "f64"],
]);

/** `kvf_ledger` */
export const LEDGER = new Struct([
  ["size", "u32"],
  ["n_sequence", "u32"],
  ["n_page", "u32"],
  ["n_object", "u32"],
  ["promised_bytes", "f64"],
  ["owned_bytes", "f64"],
  ["resident_bytes", "f64"],
  ["peak_bytes", "f64"],
]);

/** `kvf_sequence_info` */
export const SEQUENCE_INFO = new Struct([
  ["size", "u32"],
  ["granularity", "u32"],
  ["n_stored_head", "u32"],
  ["position", "u32"],
  ["n_generated", "u32"],
  ["finished", "u32"],
  ["promised_bytes", "f64"],
  ["owned_bytes", "f64"],
]);

/** `kvf_sampling` */
export const SAMPLING = new Struct([
  ["size", "u32"],
  ["temperature", "f32"],
  ["top_k", "u32"],
  ["top_p", "f32"],
  ["seed_low", "u32"],
  ["seed_high", "u32"],
  ["min_new_token", "u32"],
]);

/** `kvf_observe` */
export const OBSERVE = new Struct([
  ["size", "u32"],
  ["n_window", "u32"],
  ["n_mass", "u32"],
  ["n_range", "u32"],
]);

/** `kvf_op` */
export const OP = new Struct([
  ["size", "u32"],
  ["kind", "u32"],
  ["head", "u32"],
  ["every", "u32"],
  ["above", "u32"],
  ["keep", "u32"],
  ["first", "u32"],
  ["last", "u32"],
  ["statistic", "u32"],
  ["reduce", "u32"],
  ["draw", "u32"],
  ["seed", "u32"],
  ["from", "u32"],
  ["page_rows", "u32"],
  ["cut", "u32"],
  ["temperature", "f32"],
  ["decay", "f32"],
]);

/** `kvf_format` */
export const FORMAT = new Struct([
  ["size", "u32"],
  ["flags", "u32"],
  ["residual", "u32"],
  ["key_channels", "u32"],
  ["key_bits", "u32"],
  ["key_axis", "u32"],
  ["key_group", "u32"],
  ["key_levels", "u32"],
  ["key_outliers", "u32"],
  ["key_rank", "u32"],
  ["value_bits", "u32"],
  ["value_axis", "u32"],
  ["value_group", "u32"],
  ["value_levels", "u32"],
  ["value_outliers", "u32"],
  ["value_rank", "u32"],
]);

/** All structs by their C name. */
export const STRUCTS = {
  kvf_device_options: DEVICE_OPTIONS,
  kvf_device_info: DEVICE_INFO,
  kvf_model_config: MODEL_CONFIG,
  kvf_cache_config: CACHE_CONFIG,
  kvf_ledger: LEDGER,
  kvf_sequence_info: SEQUENCE_INFO,
  kvf_sampling: SAMPLING,
  kvf_observe: OBSERVE,
  kvf_op: OP,
  kvf_format: FORMAT,
};

/** `enum kvf_dtype`, by our names. */
export const DTYPES = ["f32", "f16", "bf16"] as const;
/** `enum kvf_granularity`, by our names. */
export const GRANULARITIES = ["kv_head", "query_head"] as const;
/** `enum kvf_reduce`, by our names. */
export const REDUCES = ["mean", "max", "sum"] as const;
/** Values of `simd` in `kvf_device_options`, by our names. */
export const SIMD_LEVELS = [
  "best",
  "generic",
  "avx2",
  "avx512",
  "avx512bf16",
] as const;
/** `enum kvf_tensor`, by our names. */
export const TENSORS = [
  "embed",
  "output",
  "finalNorm",
  "attnNorm",
  "mlpNorm",
  "q",
  "k",
  "v",
  "o",
  "qBias",
  "kBias",
  "vBias",
  "oBias",
  "qNorm",
  "kNorm",
  "gate",
  "up",
  "down",
  "router",
] as const;
/** `enum kvf_model_flag` */
export const MODEL_FLAGS = {
  qkvBias: 1,
  oBias: 2,
  qkNorm: 4,
  tiedEmbedding: 8,
  normExpertProb: 16,
} as const;
/** `enum kvf_phase` */
export const PHASES = { project: 1, attend: 2, all: 3 } as const;
/** `enum kvf_window_flag` */
export const WINDOW_FLAGS = {
  mean: 1,
  allRows: 2,
  reduceFirst: 4,
  hits: 8,
} as const;
/** `enum kvf_op_kind`, by our names. */
export const OP_KINDS = {
  mass: 1,
  queries: 2,
  evict: 3,
  pages: 4,
  relative: 5,
} as const;
/** `enum kvf_statistic`, by our names. */
export const STATISTICS = {
  position: 0,
  mass: 1,
  window: 2,
  hits: 3,
} as const;
/** `enum kvf_axis`, by our names. */
export const AXES = ["channel", "token"] as const;
/** `enum kvf_levels`, by our names. */
export const LEVELS = ["even", "fitted"] as const;
/** `enum kvf_format_flag` */
export const FORMAT_FLAGS = { once: 1, unrotated: 2 } as const;
/** `enum kvf_status`: kind of error by status. */
export const STATUS_KINDS = {
  [-1]: "argument",
  [-2]: "memory",
  [-3]: "device",
  [-4]: "state",
  [-5]: "cancelled",
  [-6]: "busy",
} as const;
