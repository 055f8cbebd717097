/**
 * The table of native functions. It mirrors csrc/kvf.h: same order, same section names, one line per argument with its
 * C name; `tests/ffi/symbols_test.ts` compares the two. Entries that end in `_async` call the same C function on
 * another thread.
 *
 * @module
 */

/** Brands keep one kind of handle from being passed as another. */
export type DevicePointer = Deno.PointerObject<{ readonly handle: "device" }>;
/** Weights and shape of a model. */
export type ModelPointer = Deno.PointerObject<{ readonly handle: "model" }>;
/** A page pool with its sequences. */
export type CachePointer = Deno.PointerObject<{ readonly handle: "cache" }>;

const device = "pointer" as Deno.NativeTypedPointer<DevicePointer>;
const model = "pointer" as Deno.NativeTypedPointer<ModelPointer>;
const cache = "pointer" as Deno.NativeTypedPointer<CachePointer>;

/** Version of the ABI that this table describes. */
export const ABI_VERSION = 14;

const PREFILL_LAYERS = [
  model,
  cache,
  "u32", // sequence
  "u32", // first_layer
  "u32", // n_layer
  "u32", // phases
  "buffer", // control [2] u32, read and written
  "buffer", // err, written
  "u32", // err_cap, bytes
] as const;

const DECODE = [
  model,
  cache,
  "buffer", // sequences [n_sequence] u32
  "u32", // n_sequence
  "u32", // n_step
  "buffer", // tokens [n_step, n_sequence] u32, written
  "buffer", // logits [n_step, n_sequence, vocab] f32, written
  "f64", // logits_bytes
  "buffer", // control [2] u32, read and written
  "buffer", // err, written
  "u32", // err_cap, bytes
] as const;

const EXTEND = [
  model,
  cache,
  "u32", // sequence
  "buffer", // tokens [n_token] u32
  "u32", // n_token
  "buffer", // err, written
  "u32", // err_cap, bytes
] as const;

/** Mirrors csrc/kvf.h. */
export const SYMBOLS = {
  // ---- Library ----
  kvf_abi_version: { parameters: [], result: "u32" },
  kvf_last_status: { parameters: [], result: "i32" },
  kvf_live_handles: { parameters: [], result: "u32" },

  // ---- Device ----
  kvf_device_create: {
    parameters: [
      "buffer", // options
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: device, // NULL on failure
  },
  kvf_device_free: { parameters: [device], result: "void" },
  kvf_device_describe: {
    parameters: [
      device,
      "buffer", // info, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_device_read_bandwidth: {
    parameters: [
      device,
      "f64", // bytes
    ],
    result: "f64", // bytes per second, 0 on failure
  },

  // ---- Model ----
  kvf_model_create: {
    parameters: [
      device,
      "buffer", // config
      "buffer", // inv_freq [head_dim / 2] f32
      "buffer", // layer_window [n_layer] u32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: model, // NULL on failure
  },
  kvf_model_free: { parameters: [model], result: "void" },
  kvf_model_load: {
    parameters: [
      model,
      "u32", // tensor
      "u32", // layer
      "u32", // expert
      "u32", // dtype
      "u32", // first_row
      "u32", // n_row
      "buffer", // data
      "f64", // data_bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_model_source: {
    parameters: [
      model,
      "buffer", // data, kept
      "f64", // bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_model_ready: {
    parameters: [
      model,
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_model_randomize: {
    parameters: [
      model,
      "u32", // seed
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_model_bytes: { parameters: [model], result: "f64" },
  kvf_model_step_bytes: { parameters: [model], result: "f64" },

  // ---- Cache ----
  kvf_cache_create: {
    parameters: [
      device,
      "buffer", // config
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: cache, // NULL on failure
  },
  kvf_cache_free: { parameters: [cache], result: "void" },
  kvf_cache_ledger: {
    parameters: [
      cache,
      "buffer", // ledger, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_cache_reset_peak: {
    parameters: [
      cache,
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_cache_page_bytes: { parameters: [cache], result: "f64" },

  // ---- Sequences: ids within their cache ----
  kvf_sequence_create: {
    parameters: [
      cache,
      "u32", // granularity
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_sequence_fork: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // granularity
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_sequence_free: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_describe: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // info, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_rows: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // rows [n_layer, n_stored_head] u32, written
      "u32", // n_rows
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_bytes: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // bytes [n_layer, n_stored_head] f64, written
      "u32", // n_bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_sampling: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // sampling
      "buffer", // stop [n_stop] u32
      "u32", // n_stop
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_forget: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Prefill: one sequence, layer by layer ----
  kvf_prefill_begin: {
    parameters: [
      model,
      cache,
      "u32", // sequence
      "buffer", // tokens [n_token] u32
      "u32", // n_token
      "f64", // kept_bytes
      "buffer", // observe
      "buffer", // ranges [n_range, 3] u32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_prefill_layers: { parameters: PREFILL_LAYERS, result: "i32" },
  kvf_prefill_layers_async: {
    name: "kvf_prefill_layers",
    nonblocking: true,
    parameters: PREFILL_LAYERS,
    result: "i32",
  },
  kvf_prefill_sparse: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // patterns [n_head, 3] u32
      "u32", // n_pattern
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_prefill_recall: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // patterns [n_candidate, n_head, 3] u32
      "u32", // n_pattern
      "buffer", // shares [n_candidate, n_head, 2] f32, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_prefill_end: {
    parameters: [
      model,
      cache,
      "u32", // sequence
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_prefill_logits: {
    parameters: [
      model,
      cache,
      "u32", // sequence
      "buffer", // logits [n_token, vocab] f32, written
      "f64", // logits_bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_record_begin: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // n_token
      "buffer", // observe
      "buffer", // ranges [n_range, 3] u32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_record_rotation: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // inv_freq [n_freq] f32
      "u32", // n_freq
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_record_layer: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "buffer", // q [n_head, n_token, head_dim] f32
      "buffer", // k [n_kv_head, n_token, head_dim] f32
      "buffer", // v [n_kv_head, n_token, head_dim] f32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Decode ----
  kvf_decode: { parameters: DECODE, result: "i32" },
  kvf_decode_async: {
    name: "kvf_decode",
    nonblocking: true,
    parameters: DECODE,
    result: "i32",
  },
  kvf_extend: { parameters: EXTEND, result: "i32" },
  kvf_extend_async: {
    name: "kvf_extend",
    nonblocking: true,
    parameters: EXTEND,
    result: "i32",
  },
  kvf_sequence_logits: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // logits [vocab] f32, written
      "u32", // n_logit
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Step programs: what happens to a layer in every decode step ----
  kvf_sequence_program: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "buffer", // ops [n_op] kvf_op
      "u32", // n_op
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_program_rows: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // head
      "buffer", // rows [n_row] u32, written
      "u32", // n_row
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // how many
  },

  // ---- Scores: objects [n_head, n_row] f32, where row j belongs to row j of the layer ----
  kvf_scores_create: {
    parameters: [
      cache,
      "u32", // n_head
      "u32", // n_row
      "buffer", // values [n_head, n_row] f32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_window: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // window
      "u32", // flags
      "u32", // reduce
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_attention_map: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // block, tokens
      "buffer", // map [n_head, n_block, n_block] f32, written
      "f64", // map_bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // status
  },
  kvf_scores_mass: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // mass
      "u32", // reduce
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_norm: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // what
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_channels: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // window
      "u32", // reduce
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_scores_pool: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // kind
      "u32", // width
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_affine: {
    parameters: [
      cache,
      "u32", // scores
      "f32", // a
      "f32", // b
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_combine: {
    parameters: [
      cache,
      "u32", // a
      "u32", // b
      "u32", // what
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_fill: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // first
      "u32", // end
      "f32", // value
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_fill_last: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // count
      "f32", // value
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_concentrate: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // count
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_log: {
    parameters: [
      cache,
      "u32", // scores
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_fill_selected: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // selection
      "f32", // value
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_relative: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // lead
      "u32", // span
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_random: {
    parameters: [
      cache,
      "u32", // n_head
      "u32", // n_row
      "u32", // seed
      "u32", // layer
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },

  // ---- Selections: per head, ascending distinct rows ----
  kvf_selection_create: {
    parameters: [
      cache,
      "u32", // n_head
      "buffer", // counts [n_head] u32
      "buffer", // rows, u32
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_select_top: {
    parameters: [
      cache,
      "u32", // scores
      "buffer", // counts [n_head] u32
      "u32", // n_head
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32", // id
  },
  kvf_scores_share: {
    parameters: [
      cache,
      "u32", // scores
      "u32", // total
      "buffer", // counts [n_head] u32, written
      "u32", // n_head
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Objects: scores and selections ----
  kvf_object_free: {
    parameters: [
      cache,
      "u32", // object
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_object_shape: {
    parameters: [
      cache,
      "u32", // object
      "buffer", // shape [3] u32, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_scores_read: {
    parameters: [
      cache,
      "u32", // scores
      "buffer", // values [n_head, n_row] f32, written
      "u32", // n_value
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_selection_read: {
    parameters: [
      cache,
      "u32", // selection
      "buffer", // counts [n_head] u32, written
      "u32", // n_head
      "buffer", // rows [entries] u32, written
      "u32", // n_row
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Actions on one layer of a sequence ----
  kvf_retain: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // selection
      "u32", // first
      "u32", // last
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_retain_merged: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // selection
      "u32", // first
      "u32", // last
      "u32", // merge
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_spread_values: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // shares
      "u32", // first
      "u32", // span
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Packed rows ----
  kvf_pack: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "buffer", // format
      "u32", // rows
      "u32", // channels
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_format_bytes: {
    parameters: [
      cache,
      "buffer", // format
      "buffer", // bytes [2] f64, written
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_sequence_packed: {
    parameters: [
      cache,
      "u32", // sequence
      "buffer", // rows [n_layer, n_stored_head] u32, written
      "u32", // n_rows
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },

  // ---- Reading ----
  kvf_share_directions: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "f32", // interpolation
      "u32", // n_exact
      "f32", // within
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_read_rows: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // head
      "u32", // what
      "buffer", // rows [rows, head_dim] f32, written
      "f64", // rows_bytes
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
  kvf_read_positions: {
    parameters: [
      cache,
      "u32", // sequence
      "u32", // layer
      "u32", // head
      "buffer", // positions [rows] u32, written
      "u32", // n_position
      "buffer", // err, written
      "u32", // err_cap, bytes
    ],
    result: "i32",
  },
} as const satisfies Deno.ForeignLibraryInterface;
