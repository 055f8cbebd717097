/** Packed caches: bytes, losses, and what must not matter to a result, in real generation and on recorded rows. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import fc from "fast-check";
import {
  type Configuration,
  generate,
  type GenerationOptions,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { Cache, decode, Device, type Sequence } from "../../ffi/mod.ts";
import { METHODS, type PackFormat, resolveOptions } from "../../methods/mod.ts";
import {
  gearFormat,
  kiviFormat,
  kvquantFormat,
} from "../../methods/parts/quant.ts";
import { BUILD, KIND, MODEL_BUILD, noise } from "../ffi/tiny.ts";

const LLAMA = fromFileUrl(
  new URL("../goldens/models/llama", import.meta.url),
);
const prompt = (length: number, seed = 0): number[] =>
  Array.from({ length }, (_, i) => (i * 37 + seed * 11 + i * i) % 250 + 3);

function configured(
  model: LanguageModel,
  name: string,
  given: Record<string, unknown>,
): Configuration {
  const method = METHODS.get(name)!;
  const options = resolveOptions(method, given);
  method.create(options, model.shape);
  return { method, options, granularity: "kv_head" };
}

/** A read prompt, packed. */
async function packed(
  model: LanguageModel,
  cache: Cache,
  format: PackFormat,
  length: number,
): Promise<Sequence> {
  const sequence = cache.sequence("kv_head");
  const prefill = sequence.prefill(model.native, prompt(length));
  await prefill.layers(0, prefill.layerCount);
  prefill.end();
  for (let i = 0; i < model.shape.layers; i++) {
    using layer = sequence.layer(i);
    layer.pack(format);
  }
  return sequence;
}

/** Steps of a long generation; fewer where the emulator may run them. Two pages come due in them. */
const STEPS = KIND === "cuda" ? 70 : 300;

const FORMATS: [name: string, format: PackFormat][] = [
  ["kivi:2", kiviFormat(2, 16)],
  ["kivi:4", kiviFormat(4, 0)],
  ["kvquant:3", kvquantFormat(3, 32, 0.02)],
  ["gear:2", gearFormat(2, 8, 2, 0.02)],
];

for (const [name, format] of FORMATS) {
  Deno.test(`${name} keeps the ledger true over ${STEPS} steps, and batches, threads and forks do not matter`, async () => {
    using model = await LanguageModel.load(LLAMA, MODEL_BUILD);
    using cache = new Cache(model.device, { ...model.shape, rowDtype: "f32" });
    const { page, shared } = cache.packedBytes(format);
    using alone = await packed(model, cache, format, 70);
    using batched = await packed(model, cache, format, 70);
    using other = await packed(model, cache, format, 41);
    const first = await decode(model.native, cache, [alone], STEPS, {
      logits: true,
    });
    using fork = batched.fork();
    const tokens: number[] = [];
    for (let step = 0; step < STEPS; step++) {
      const pair = [other, batched];
      const stepped = await decode(model.native, cache, pair, 1);
      tokens.push(stepped.tokens[1]![0]!);
      const ledger = cache.ledger();
      assertEquals(ledger.promisedBytes, ledger.ownedBytes);
      const rows = batched.rows().flat();
      const bytes = batched.packedRows().flat().reduce(
        (sum, n, i) =>
          sum + n / 32 * page + (n > 0 ? shared : 0) +
          Math.ceil((rows[i]! - n) / 32) * cache.pageBytes,
        0,
      );
      assertEquals(batched.describe().ownedBytes, bytes);
      for (const [i, n] of batched.packedRows().flat().entries()) {
        assert(rows[i]! - n < (format.residual ?? 0) + 33);
      }
    }
    assertEquals(tokens, [...first.tokens[0]!]);
    const again = await decode(model.native, cache, [fork], STEPS, {
      logits: true,
    });
    assertEquals(again.logits, first.logits);
  });
}

Deno.test("threads do not change a packed cache's logits", async () => {
  const logits: Float32Array[] = [];
  for (const threads of [1, 2]) {
    using model = await LanguageModel.load(LLAMA, { ...MODEL_BUILD, threads });
    using cache = new Cache(model.device, { ...model.shape, rowDtype: "f32" });
    using sequence = await packed(model, cache, gearFormat(3, 0, 2, 0.01), 90);
    const { logits: one } = await decode(model.native, cache, [sequence], 70, {
      logits: true,
    });
    logits.push(one!);
  }
  assertEquals(logits[0], logits[1]);
});

Deno.test("more bits lose less, and 8 bits next to nothing", async () => {
  using model = await LanguageModel.load(LLAMA, MODEL_BUILD);
  const options: GenerationOptions = { maxNewTokens: 4, logits: true };
  const loss = async (name: string, given: Record<string, unknown>) => {
    const [full, lossy] = await generate(model, prompt(160), [
      configured(model, "fullkv", {}),
      configured(model, name, given),
    ], options);
    const n = model.native.config.vocab;
    return Math.max(
      ...Array.from(
        { length: n },
        (_, i) => Math.abs(full!.logits![n + i]! - lossy!.logits![n + i]!),
      ),
    );
  };
  const kivi = [];
  for (const bits of [2, 4, 8]) {
    kivi.push(await loss("kivi", { bits, residual: 0 }));
  }
  assert(kivi[0]! > kivi[1]! && kivi[1]! > kivi[2]!, kivi.join(" "));
  assert(kivi[2]! > 0 && kivi[2]! < 0.02, `${kivi[2]}`);
  assert(await loss("gear", { bits: 2, residual: 0 }) < kivi[0]!);
  assert(await loss("kvquant", { bits: 3, residual: 0 }) < kivi[0]!);
  assert(await loss("kvquant", { bits: 4, residual: 0, outliers: 0.25 }) < 0.1);
});

Deno.test("bytes of a page are within 2 % of the arithmetic", () => {
  using device = new Device(BUILD);
  for (const headDim of [64, 80, 96, 128]) {
    using cache = new Cache(device, {
      layers: 1,
      queryHeads: 2,
      kvHeads: 1,
      headDim,
      rowDtype: "f32",
    });
    for (const bits of [2, 3, 4, 8]) {
      const codes = 2 * 32 * headDim * bits / 8;
      const scales = 4 * headDim + 4 * 32 * Math.ceil(headDim / 32);
      const expected = codes + scales + 4 * 32;
      const { page } = cache.packedBytes(kiviFormat(bits, 0));
      assert(
        Math.abs(page - expected) <= 0.02 * expected,
        `${headDim}: ${page}, ${expected}`,
      );
      const pruned = cache.packedBytes({ once: true }, 10).page;
      const kept = 32 * 4 * (10 + headDim) + 4 * 32;
      assert(Math.abs(pruned - kept) <= 0.02 * kept);
    }
  }
});

Deno.test("eviction, packing and a schedule go together: budgets hold and rows are packed", async () => {
  using model = await LanguageModel.load(LLAMA, MODEL_BUILD);
  for (
    const [name, given] of [
      ["h2o", { budget: 96, schedule: "every:64", quant: "gear:2" }],
      ["snapkv", {
        budget: 96,
        quant: "kivi:4",
        merge: "weighted",
        budgetPolicy: "adaptive",
      }],
      ["snapkv", { budget: 100, quant: "kvquant:3" }],
    ] as const
  ) {
    const [plain, small] = await generate(model, prompt(300), [
      configured(model, name, { ...given, quant: "none" }),
      configured(model, name, given),
    ], { maxNewTokens: 150, logits: true });
    assertEquals(small!.cache.promisedBytes, small!.cache.residentBytes);
    assert(
      small!.cache.residentBytes < 0.75 * plain!.cache.residentBytes,
      `${name}: ${small!.cache.residentBytes}, ${plain!.cache.residentBytes}`,
    );
    assertEquals(small!.cache.rows, plain!.cache.rows);
  }
});

/** Packs recorded keys and values and reads them back. */
function roundTrip(
  format: PackFormat,
  headDim: number,
  rows: number,
  k: Float32Array,
  v: Float32Array,
) {
  using device = new Device(BUILD);
  using cache = new Cache(device, {
    layers: 1,
    queryHeads: 1,
    kvHeads: 1,
    headDim,
    rowDtype: "f32",
  });
  using sequence = cache.sequence("kv_head");
  sequence.record(rows);
  sequence.recordLayer(0, { q: noise(rows * headDim, 9), k, v });
  {
    using layer = sequence.layer(0);
    layer.pack(format);
  }
  return {
    keys: sequence.readRows(0, 0, "keys"),
    values: sequence.readRows(0, 0, "values"),
    packed: sequence.packedRows()[0]![0]!,
  };
}

Deno.test("packed values are within half a step of what they were, whatever the numbers", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(2, 3, 4, 8),
      fc.constantFrom(16, 48, 64),
      fc.integer({ min: 1, max: 100 }),
      fc.constantFrom(0, 1, -300, 1e4),
      fc.constantFrom(0, 1e-3, 1, 50),
      fc.integer(),
      (bits, headDim, rows, offset, spread, seed) => {
        const make = (salt: number) =>
          noise(rows * headDim, (seed >>> 0) + salt).map((x) =>
            offset + spread * x
          );
        const [k, v] = [make(1), make(2)];
        const { values, keys, packed } = roundTrip(
          { ...kiviFormat(bits, 0), once: true },
          headDim,
          rows,
          k,
          v,
        );
        assertEquals(packed, rows);
        // The lowest code is a half: it may lie below the lowest value by its own spacing, and widens the step.
        const bound = (low: number, high: number) => {
          const size = Math.max(Math.abs(low), Math.abs(high));
          const range = high - low + size * 2 ** -10 + 2 ** -14;
          return 0.5 * range / (2 ** bits - 1) * 1.002 + 1e-5 + size * 2 ** -22;
        };
        for (let r = 0; r < rows; r++) {
          for (let d = 0; d < headDim; d++) {
            const at = r * headDim + d;
            const group = v.subarray(
              r * headDim + d - d % 32,
              Math.min((r + 1) * headDim, r * headDim + d - d % 32 + 32),
            );
            const limit = bound(Math.min(...group), Math.max(...group));
            assert(
              Math.abs(values[at]! - v[at]!) <= limit,
              `value ${v[at]} became ${values[at]}, limit ${limit}`,
            );
            const first = r - r % 32;
            const column = Array.from(
              { length: Math.min(32, rows - first) },
              (_, i) => k[(first + i) * headDim + d]!,
            );
            assert(
              Math.abs(keys[at]! - k[at]!) <=
                bound(Math.min(...column), Math.max(...column)),
            );
          }
        }
      },
    ),
    {
      numRuns: 40,
      // One row: its own spacing as a half is all the range there is.
      examples: [[4, 16, 1, 0, 50, 0]],
    },
  );
});

Deno.test("a constant group is exact, and values beyond half precision saturate without harm", () => {
  const constant = new Float32Array(32 * 16).fill(-3.5);
  assertEquals(
    roundTrip(kiviFormat(2, 0), 16, 32, constant, constant).values,
    constant,
  );
  const huge = constant.map((_, i) => i % 2 ? 1e30 : NaN);
  const { values } = roundTrip(kiviFormat(2, 0), 16, 32, huge, huge);
  assert(values.every((x) => Number.isFinite(x) && Math.abs(x) <= 262016));
});

Deno.test("pack() refuses what it cannot do, with the reason", () => {
  using device = new Device(BUILD);
  using cache = new Cache(device, {
    layers: 1,
    queryHeads: 2,
    kvHeads: 1,
    headDim: 16,
    rowDtype: "f32",
  });
  using sequence = cache.sequence("kv_head");
  sequence.record(40, { windowQueries: 4 });
  sequence.recordLayer(0, {
    q: noise(2 * 40 * 16, 1),
    k: noise(40 * 16, 2),
    v: noise(40 * 16, 3),
  });
  using layer = sequence.layer(0);
  const keys = { bits: 4, axis: "channel" } as const;
  for (
    const [format, message] of [
      [{}, "must make rows smaller"],
      [{ keys: { ...keys, bits: 5 } }, "key_bits must be 0, 2, 3, 4 or 8: 5"],
      [{ keys: { ...keys, group: 16 } }, "key_group must be 0 per channel"],
      [{ keys: { ...keys, outliers: 0.3 } }, "outliers must be a share"],
      [{ keys: { ...keys, rank: 17 } }, "key_rank must be at most"],
      [
        { keys: { ...keys, levels: "fitted", bits: 8 } },
        "at most 4 for fitted levels",
      ],
      [{ keys: { ...keys, unrotated: true } }, "must have a known rotation"],
      [{ residual: -1, keys }, "residual"],
    ] as [PackFormat, string][]
  ) {
    assertThrows(() => layer.pack(format), Error, message);
  }
  assertThrows(
    () => layer.pack({ keys }, { rows: layer.select([[1, 2]]) }),
    Error,
    "must come with KVF_PACK_ONCE",
  );
  layer.pack({ keys });
  layer.pack({ keys });
  assertThrows(
    () => layer.pack({ keys: { ...keys, bits: 2 } }),
    Error,
    "layer 0 must be plain",
  );
  assertEquals(sequence.packedRows(), [[32]]);
});

Deno.test("methods refuse options that contradict each other", () => {
  const shape = { layers: 2, queryHeads: 4, kvHeads: 2, headDim: 16 };
  for (
    const [name, given, message] of [
      ["kivi", { compat: "reference", residual: 5 }, "residual is 5"],
      ["kvquant", { bits: 8 }, "at most 4 bits"],
      ["gear", { rank: 20 }, "the 16 channels"],
      ["think", { budget: 32 }, "must exceed the 32"],
      [
        "think",
        { budget: 40, fullRows: 40, compat: "reference" },
        "must exceed the 40",
      ],
      ["snapkv", { budget: 64, quant: "kivi:5" }, "must be 2, 3, 4, 8"],
      ["snapkv", { budget: 64, quant: "hqq:4" }, "quant must be none"],
      [
        "h2o",
        { budget: 64, quant: "kivi:4", schedule: "step" },
        "evicted in steps must be plain",
      ],
    ] as [string, Record<string, unknown>, string][]
  ) {
    const method = METHODS.get(name)!;
    assertThrows(
      () => method.create(resolveOptions(method, given), shape),
      Error,
      message,
    );
  }
});
