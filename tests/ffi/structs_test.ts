import { assertEquals, assertThrows } from "@std/assert";
import {
  CACHE_CONFIG,
  DEVICE_INFO,
  DTYPES,
  GRANULARITIES,
  LEDGER,
  MODEL_FLAGS,
  OP_KINDS,
  PHASES,
  REDUCES,
  STATISTICS,
  STATUS_KINDS,
  STRUCTS,
  TENSORS,
  WINDOW_FLAGS,
} from "../../ffi/_structs.ts";
import { readEnum, readStructs } from "./header.ts";

const TYPES = new Map([
  ["uint32_t", "u32"],
  ["float", "f32"],
  ["double", "f64"],
  ["char[128]", "char128"],
]);

Deno.test("STRUCTS has the fields of the header in its order", () => {
  const structs = readStructs();
  assertEquals([...structs.keys()].sort(), Object.keys(STRUCTS).sort());
  for (const [name, struct] of Object.entries(STRUCTS)) {
    assertEquals(
      [name, ...struct.fields.map((field) => field.join(" "))],
      [
        name,
        ...(structs.get(name) ?? []).map(([field, type]) =>
          `${field} ${TYPES.get(type)}`
        ),
      ],
    );
  }
});

Deno.test("Struct lays fields out as C does", () => {
  assertEquals(DEVICE_INFO.offsets, [0, 4, 8, 12, 16, 20, 24, 32, 40]);
  assertEquals(DEVICE_INFO.size, 168);
  assertEquals(CACHE_CONFIG.offsets.at(-1), 24);
  assertEquals(CACHE_CONFIG.size, 32);
  assertEquals(LEDGER.size, 48);
});

Deno.test("Struct.encode() writes size and values", () => {
  const bytes = CACHE_CONFIG.encode({
    n_layer: 1,
    n_head: 2,
    n_kv_head: 3,
    head_dim: 4,
    row_dtype: 5,
    limit_bytes: 2 ** 40,
  });
  const view = new DataView(bytes.buffer);
  assertEquals(
    [0, 4, 8, 12, 16, 20].map((at) => view.getUint32(at, true)),
    [32, 1, 2, 3, 4, 5],
  );
  assertEquals(view.getFloat64(24, true), 2 ** 40);
});

Deno.test("Struct.encode() refuses a missing field", () => {
  assertThrows(
    () => LEDGER.encode({} as Parameters<typeof LEDGER.encode>[0]),
    TypeError,
    "n_sequence",
  );
});

Deno.test("Struct.decode() reads numbers and text", () => {
  const bytes = DEVICE_INFO.empty();
  bytes.set(new TextEncoder().encode("Größe 7\0rest"), 40);
  new DataView(bytes.buffer).setFloat64(24, 1.5, true);
  const info = DEVICE_INFO.decode(bytes);
  assertEquals([info.size, info.total_bytes, info.name], [168, 1.5, "Größe 7"]);
});

/** `KVF_T_ATTN_NORM` as `attnNorm`. */
function camel(name: string, prefix: string): string {
  return name.replace(prefix, "").toLowerCase()
    .replace(/_(\w)/g, (_, c: string) => c.toUpperCase());
}

Deno.test("names of constants stand where the header's enums put them", () => {
  const lists: [string, string, readonly string[]][] = [
    ["kvf_dtype", "KVF_", DTYPES],
    ["kvf_reduce", "KVF_", REDUCES],
    ["kvf_tensor", "KVF_T_", [...TENSORS, "count"]],
  ];
  for (const [name, prefix, ours] of lists) {
    assertEquals(
      [...readEnum(name)].map(([key, value]) => [camel(key, prefix), value]),
      ours.map((key, value) => [key, value]),
    );
  }
  assertEquals(
    [...readEnum("kvf_granularity")].map(([key]) =>
      key.replace("KVF_", "").toLowerCase()
    ),
    [...GRANULARITIES],
  );
});

Deno.test("flags have the values of the header", () => {
  const maps: [string, string, Record<string, number>][] = [
    ["kvf_model_flag", "KVF_", MODEL_FLAGS],
    ["kvf_phase", "KVF_PHASE_", PHASES],
    ["kvf_window_flag", "KVF_WINDOW_", WINDOW_FLAGS],
    ["kvf_op_kind", "KVF_OP_", OP_KINDS],
    ["kvf_statistic", "KVF_STAT_", STATISTICS],
  ];
  for (const [name, prefix, ours] of maps) {
    assertEquals(
      Object.fromEntries(
        [...readEnum(name)].map(([key, value]) => [camel(key, prefix), value]),
      ),
      ours,
    );
  }
});

Deno.test("every status of the header has a kind of error", () => {
  const statuses = [...readEnum("kvf_status").values()].filter((n) => n < 0);
  assertEquals(
    statuses.sort(),
    Object.keys(STATUS_KINDS).map(Number).sort(),
  );
});
