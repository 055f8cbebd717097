import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import {
  readSafetensorsHeader,
  readTensor,
  readWeightHeaders,
  streamTensors,
  writeSafetensors,
} from "../../models/mod.ts";
import {
  assertClear,
  brokenBytes,
  brokenJson,
  rawSafetensors,
  RUNS,
  temporaryFolder,
} from "./_fixtures.ts";

const HEADER = {
  __metadata__: { format: "pt" },
  a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
  b: { dtype: "BF16", shape: [4], data_offsets: [24, 32] },
  c: { dtype: "I64", shape: [], data_offsets: [32, 40] },
};

/** Writes a file with a header and reads it. */
function readBack(header: unknown, dataBytes = 40): void {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  Deno.writeFileSync(file, rawSafetensors(JSON.stringify(header), dataBytes));
  const error = catchError(() => readSafetensorsHeader(file));
  if (error) {
    assertEquals(error.message.includes(file), true);
    throw error;
  }
}

function catchError(run: () => unknown): Error | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    return error as Error;
  }
}

Deno.test("readSafetensorsHeader() reads names, types, shapes and metadata", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  Deno.writeFileSync(file, rawSafetensors(JSON.stringify(HEADER), 40));
  const header = readSafetensorsHeader(file);
  assertEquals(header.metadata["format"], "pt");
  const b = header.tensors.get("b")!;
  assertEquals([b.dtype, b.shape, b.bytes], ["BF16", [4], 8]);
  assertEquals(b.start, header.headerBytes + 8 + 24);
});

Deno.test("readSafetensorsHeader() names the tensor that is wrong", () => {
  const wrong: [part: string, rule: string, bytes?: number][] = [
    ['{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', "dtype", 4],
    ['{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "8 bytes", 4],
    ['{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "shape", 4],
    ['{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,6]}}', "shape", 6],
    ['{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "ascending", 4],
    ['{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', "ascending", 4],
    ['{"a":{"dtype":"F32","shape":[1]}}', "missing", 4],
    ['{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', "only", 4],
    ['{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "gap", 8],
    [
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
      "overlaps",
      6,
    ],
    [
      '{"a":{"dtype":"F32","shape":[1e200,0],"data_offsets":[0,0]}}',
      "shape",
      0,
    ],
    ['{"a":7}', "object", 0],
  ];
  using folder = temporaryFolder();
  for (const [text, rule, bytes = 0] of wrong) {
    const file = join(folder.path, "x.safetensors");
    Deno.writeFileSync(file, rawSafetensors(text, bytes));
    const error = assertThrows(
      () => readSafetensorsHeader(file),
      SyntaxError,
      rule,
    );
    assertEquals(error.message.includes(file), true);
    assertEquals(/tensor "[ab]"/.test(error.message), true, error.message);
  }
});

Deno.test("readSafetensorsHeader() refuses a file that is longer or shorter than its tensors", () => {
  assertThrows(() => readBack(HEADER, 41), SyntaxError, "bytes");
  assertThrows(() => readBack(HEADER, 39), SyntaxError, "ascending");
});

Deno.test("readSafetensorsHeader() refuses a header length beyond the file, without reading it", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  for (const length of [0n, 1n, 100n, 2n ** 32n, 2n ** 63n, 2n ** 64n - 1n]) {
    const bytes = rawSafetensors("{}", 20);
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    Deno.writeFileSync(file, bytes);
    assertThrows(() => readSafetensorsHeader(file), SyntaxError, file);
  }
});

Deno.test("readSafetensorsHeader() refuses a header that is no JSON object", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  const deep = `{"a":${"[".repeat(200_000)}`;
  for (const text of ["{", "[]", "nul", "  {}", '{"a":}', deep]) {
    Deno.writeFileSync(file, rawSafetensors(text, 0));
    assertThrows(() => readSafetensorsHeader(file), SyntaxError, file);
  }
});

Deno.test("streamTensors() gives whole rows through one buffer, in the order of the bytes", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  const matrix = Float32Array.from({ length: 35 }, (_, i) => i);
  writeSafetensors(file, {
    matrix: { shape: [7, 5], data: matrix },
    empty: { shape: [0, 5], data: new Float32Array(0) },
    vector: { shape: [3], data: Int32Array.of(1, 2, 3) },
  });
  const seen: [string, number, number][] = [];
  const read: number[] = [];
  const buffers = new Set<ArrayBufferLike>();
  for (
    const { tensor, firstRow, rowCount, data } of streamTensors(
      readSafetensorsHeader(file),
      undefined,
      { bufferBytes: 50 },
    )
  ) {
    seen.push([tensor.name, firstRow, rowCount]);
    buffers.add(data.buffer);
    if (tensor.name === "matrix") {
      const copy = data.slice();
      read.push(...new Float32Array(copy.buffer));
    }
  }
  assertEquals(seen, [
    ["matrix", 0, 2],
    ["matrix", 2, 2],
    ["matrix", 4, 2],
    ["matrix", 6, 1],
    ["vector", 0, 1],
  ]);
  assertEquals(read, [...matrix]);
  assertEquals(buffers.size, 1);
});

Deno.test("streamTensors() closes the file when the loop is left, and grows its buffer to one row", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  writeSafetensors(file, { m: { shape: [2, 8], data: new Float32Array(16) } });
  const header = readSafetensorsHeader(file);
  // The resource sanitizer of the test runner sees a file that stays open.
  for (
    const { rowCount } of streamTensors(header, undefined, { bufferBytes: 1 })
  ) {
    assertEquals(rowCount, 1);
    break;
  }
});

Deno.test("streamTensors() refuses a file that changed since its header was read", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  writeSafetensors(file, { m: { shape: [4], data: new Float32Array(4) } });
  const header = readSafetensorsHeader(file);
  Deno.truncateSync(file, header.fileBytes - 4);
  assertThrows(() => [...streamTensors(header)], SyntaxError, file);
});

Deno.test("readTensor() converts every numeric type", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  writeSafetensors(file, {
    f32: { shape: [2], data: Float32Array.of(1.5, -2) },
    f64: { shape: [2], data: Float64Array.of(1.5, -2) },
    i32: { shape: [2], data: Int32Array.of(7, -8) },
    i64: { shape: [2], data: BigInt64Array.of(7n, -8n) },
    u8: { shape: [2], data: Uint8Array.of(0, 255) },
    bf16: { shape: [2], data: Uint16Array.of(0x3fc0, 0xc000), dtype: "BF16" },
    f16: {
      shape: [6],
      data: Uint16Array.of(0x3e00, 0xc000, 0x0001, 0x7bff, 0x7c00, 0x8000),
      dtype: "F16",
    },
    f8: { shape: [1], data: Uint8Array.of(1), dtype: "F8_E4M3" },
  });
  const values = (name: string) => [...readTensor(file, name).data];
  assertEquals(values("f32"), [1.5, -2]);
  assertEquals(values("f64"), [1.5, -2]);
  assertEquals(values("i32"), [7, -8]);
  assertEquals(values("i64"), [7, -8]);
  assertEquals(values("u8"), [0, 255]);
  assertEquals(values("bf16"), [1.5, -2]);
  const half = values("f16");
  assertEquals(half.slice(0, 2), [1.5, -2]);
  assertAlmostEquals(half[2]!, 5.960464477539063e-8, 1e-15);
  assertEquals(half.slice(3), [65504, Infinity, -0]);
  assertThrows(() => readTensor(file, "f8"), RangeError, "F8_E4M3");
  assertThrows(() => readTensor(file, "none"), RangeError, '"none"');
});

Deno.test("writeSafetensors() refuses a shape or dtype that does not fit, and leaves nothing behind", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  const data = new Float32Array(4);
  assertThrows(
    () => writeSafetensors(file, { m: { shape: [5], data } }),
    RangeError,
    "4 elements",
  );
  assertThrows(
    () => writeSafetensors(file, { m: { shape: [4], data, dtype: "F16" } }),
    RangeError,
    "F16",
  );
  assertEquals([...Deno.readDirSync(folder.path)], []);
});

/** A folder of two shards and their index. */
function shards(folder: string): Record<string, unknown> {
  const one = { shape: [2], data: Float32Array.of(1, 2) };
  writeSafetensors(join(folder, "m-1.safetensors"), { a: one, b: one });
  writeSafetensors(join(folder, "m-2.safetensors"), { c: one });
  return {
    metadata: { total_size: 24 },
    weight_map: {
      a: "m-1.safetensors",
      b: "m-1.safetensors",
      c: "m-2.safetensors",
    },
  };
}

Deno.test("readWeightHeaders() reads shards, and index and shards must agree", () => {
  using folder = temporaryFolder();
  const good = shards(folder.path);
  const index = join(folder.path, "model.safetensors.index.json");
  const read = (weight_map: unknown) => {
    Deno.writeTextFileSync(index, JSON.stringify({ weight_map }));
    return readWeightHeaders(folder.path);
  };
  const map = good["weight_map"] as Record<string, string>;
  assertEquals(read(map).map((h) => [...h.tensors.keys()]), [["a", "b"], [
    "c",
  ]]);
  assertThrows(
    () => read({ ...map, d: "m-2.safetensors" }),
    SyntaxError,
    '"d"',
  );
  assertThrows(
    () => read({ ...map, b: "m-2.safetensors" }),
    SyntaxError,
    '"b"',
  );
  assertThrows(() => read({ a: map["a"], c: map["c"] }), SyntaxError, '"b"');
  assertThrows(
    () => read({ ...map, c: "none.safetensors" }),
    SyntaxError,
    "none",
  );
  for (
    const out of ["../m-2.safetensors", "/etc/x.safetensors", "m-2.bin", 7]
  ) {
    assertThrows(() => read({ ...map, c: out }), SyntaxError, index);
  }
  assertThrows(() => read({}), SyntaxError, index);
  assertThrows(() => read(undefined), SyntaxError, "weight_map");
});

Deno.test("readWeightHeaders() says when a folder has no weights", () => {
  using folder = temporaryFolder();
  assertThrows(
    () => readWeightHeaders(folder.path),
    Deno.errors.NotFound,
    "model.safetensors",
  );
});

Deno.test("readSafetensorsHeader() fails clearly on any broken bytes", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  const base = rawSafetensors(JSON.stringify(HEADER), 40);
  fc.assert(
    fc.property(brokenBytes(base), (bytes) => {
      Deno.writeFileSync(file, bytes);
      assertClear(() => {
        const header = readSafetensorsHeader(file);
        for (const _ of streamTensors(header));
      }, file);
    }),
    RUNS,
  );
});

Deno.test("readSafetensorsHeader() fails clearly on any broken header", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "x.safetensors");
  fc.assert(
    fc.property(brokenJson(HEADER), (json) => {
      Deno.writeFileSync(file, rawSafetensors(JSON.stringify(json), 40));
      assertClear(() => {
        const header = readSafetensorsHeader(file);
        for (const _ of streamTensors(header));
      }, file);
    }),
    RUNS,
  );
});

Deno.test("readWeightHeaders() fails clearly on any broken index", () => {
  using folder = temporaryFolder();
  const good = shards(folder.path);
  const index = join(folder.path, "model.safetensors.index.json");
  fc.assert(
    fc.property(brokenJson(good), (json) => {
      Deno.writeTextFileSync(index, JSON.stringify(json));
      assertClear(() => readWeightHeaders(folder.path), folder.path);
    }),
    RUNS,
  );
});
