import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import {
  Cache,
  decode,
  Device,
  GREEDY,
  LibraryError,
  NativeError,
  NativeModel,
} from "../../ffi/mod.ts";
import {
  BUILD,
  KIND,
  openCache,
  openDevice,
  openModel,
  read,
  recordAll,
  SHAPE,
  tensors,
  VOCAB,
} from "./tiny.ts";

/** Runs `body` and checks that it leaves no handle behind. */
async function withoutLeaks(
  body: (device: Device) => void | Promise<void>,
): Promise<void> {
  using probe = openDevice();
  const before = probe.liveHandles;
  {
    using device = openDevice();
    await body(device);
  }
  assertEquals(probe.liveHandles, before);
}

Deno.test("Device names the library file and how to build it when it is missing", () => {
  // The one file that tests may open must be there; a path that goes through it as through a folder never is.
  const library = `${BUILD.library}/absent.so`;
  for (const kind of ["cpu", "cuda"] as const) {
    const error = assertThrows(
      () => new Device({ kind, library }),
      LibraryError,
    );
    assertEquals(error.path, library);
    const [, task = ""] = /run "deno task (.*)"/.exec(error.message)!;
    assert(task in config.tasks, task);
    assertInstanceOf(error.cause, Error);
  }
});

Deno.test({
  name: "Device passes a permission refusal on",
  permissions: { ffi: false },
  fn: () => {
    assertThrows(() => new Device(), Deno.errors.NotCapable);
  },
});

Deno.test("Device refuses wrong options before it opens the library", () => {
  assertThrows(() => new Device({ threads: -1 }), RangeError, "threads is -1");
  assertThrows(
    () => new Device({ simd: "mmx" as "avx2" }),
    TypeError,
    'simd is "mmx"',
  );
});

Deno.test("Device.info() describes the device", () => {
  using device = openDevice();
  const info = device.info();
  assertEquals([info.kind, info.threads], [KIND, 1]);
  assertEquals(info.capability !== undefined, KIND === "cuda");
  assert(info.name.length > 0);
});

Deno.test({
  name: "Device uses no higher SIMD level than asked for",
  ignore: KIND !== "cpu",
  fn: () => {
    using device = new Device({ threads: 1, simd: "generic" });
    assertEquals(device.info().simd, "generic");
  },
});

Deno.test("Device.readBandwidth() measures", () => {
  using device = openDevice();
  assert(device.readBandwidth(1 << 22) > 1e6);
  assertThrows(() => device.readBandwidth(0), RangeError, "bytes is 0");
});

Deno.test("handles are freed in any order of dispose", async () => {
  await withoutLeaks((device) => {
    const cache = openCache(device);
    const sequence = cache.sequence("kv_head");
    cache[Symbol.dispose]();
    device[Symbol.dispose]();
    assertThrows(() => sequence.rows(), TypeError, "Cannot use Cache");
    sequence[Symbol.dispose]();
  });
});

Deno.test("dispose may be called twice", async () => {
  await withoutLeaks((device) => {
    const model = openModel(device);
    const cache = openCache(device);
    const sequence = cache.sequence("kv_head");
    for (const handle of [sequence, cache, model, device]) {
      handle[Symbol.dispose]();
      handle[Symbol.dispose]();
    }
  });
});

Deno.test("use after dispose names the class", () => {
  const device = openDevice();
  const model = openModel(device);
  const cache = openCache(device);
  const sequence = cache.sequence("kv_head");
  for (const handle of [sequence, cache, model, device]) {
    handle[Symbol.dispose]();
  }
  const gone = (call: () => unknown, name: string) =>
    assertThrows(call, TypeError, `Cannot use ${name} as it has been disposed`);
  gone(() => sequence.rows(), "Sequence");
  gone(() => sequence.fork(), "Sequence");
  gone(() => sequence.layer(0), "Sequence");
  gone(() => cache.ledger(), "Cache");
  gone(() => cache.sequence("kv_head"), "Cache");
  gone(() => model.bytes, "NativeModel");
  gone(() => model.ready(), "NativeModel");
  gone(() => device.info(), "Device");
  gone(() => openCache(device), "Device");
});

Deno.test("a constructor that fails leaves nothing behind", async () => {
  await withoutLeaks((device) => {
    const shape = { ...SHAPE, kvHeads: 3 };
    const error = assertThrows(
      () => new Cache(device, { ...shape, rowDtype: "f32" }),
      NativeError,
    );
    assertEquals([error.symbol, error.kind], ["kvf_cache_create", "argument"]);
    assertThrows(
      () => new Cache(device, { ...SHAPE, layers: 0, rowDtype: "f32" }),
      RangeError,
      "layers is 0",
    );
    assertThrows(
      () =>
        new NativeModel(device, {
          ...openConfig(),
          inverseFrequencies: new Float32Array(3),
        }),
      RangeError,
      "inverseFrequencies must have 4 elements: it has 3",
    );
  });
});

function openConfig() {
  using device = openDevice();
  using model = openModel(device);
  return model.config;
}

Deno.test("NativeModel.ready() reports the library's own message", async () => {
  await withoutLeaks((device) => {
    using model = new NativeModel(device, openConfig());
    const error = assertThrows(() => model.ready(), NativeError);
    assertEquals([error.kind, error.symbol], ["state", "kvf_model_ready"]);
    assert(error.message.length > 10);
  });
});

Deno.test("NativeModel.load() takes each row once and converts it", async () => {
  await withoutLeaks((device) => {
    using model = new NativeModel(device, openConfig());
    const rows = new Uint8Array(2 * 32 * 2);
    const piece = { tensor: "embed", dtype: "bf16", rows: 2 } as const;
    model.load(piece, rows);
    model.load({ ...piece, firstRow: 2 }, rows);
    assertThrows(() => model.load(piece, rows), NativeError);
    assertThrows(
      () => model.load({ ...piece, firstRow: VOCAB }, rows),
      NativeError,
    );
    assertThrows(
      () => model.load({ ...piece, firstRow: 4 }, rows.subarray(2)),
      NativeError,
    );
    assertThrows(
      () => model.load({ ...piece, rows: 0 }, rows),
      RangeError,
      "rows is 0",
    );
    assert(model.bytes > 0 && model.stepBytes <= model.bytes);
  });
});

Deno.test("Cache.ledger() counts pages that a sequence holds, and their return", () => {
  using device = openDevice();
  using cache = openCache(device);
  {
    using sequence = cache.sequence("kv_head");
    recordAll(sequence, 40);
    const ledger = cache.ledger();
    assertEquals(ledger.sequences, 1);
    assertEquals(ledger.pages, 2 * 2 * 2);
    assert(ledger.promisedBytes > 0);
    assertEquals(ledger.ownedBytes, ledger.promisedBytes);
    assertEquals(ledger.residentBytes, ledger.promisedBytes);
    assertEquals(sequence.describe().ownedBytes, ledger.ownedBytes);
    assertEquals(
      sequence.bytes().flat().reduce((sum, n) => sum + n),
      ledger.ownedBytes,
    );
    using fork = sequence.fork();
    assertEquals(fork.rows(), [[40, 40], [40, 40]]);
    assertEquals(cache.ledger().residentBytes, ledger.residentBytes);
    assertEquals(cache.ledger().promisedBytes, 2 * ledger.promisedBytes);
  }
  const { sequences, pages, residentBytes, peakBytes } = cache.ledger();
  assertEquals([sequences, pages, residentBytes], [0, 0, 0]);
  assert(peakBytes > 0);
  cache.resetPeak();
  assertEquals(cache.ledger().peakBytes, 0);
});

Deno.test("Cache refuses more than its limit", () => {
  using device = openDevice();
  using cache = new Cache(device, {
    ...SHAPE,
    rowDtype: "f32",
    limitBytes: 4096,
  });
  using sequence = cache.sequence("kv_head");
  const error = assertThrows(() => recordAll(sequence, 1000), NativeError);
  assertEquals(error.kind, "memory");
});

Deno.test("Sequence.fork() goes from kv_head to query_head and not back", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, 5);
  using wide = sequence.fork("query_head");
  assertEquals(wide.rows(), [[5, 5, 5, 5], [5, 5, 5, 5]]);
  assertEquals(wide.readRows(0, 1, "keys"), sequence.readRows(0, 0, "keys"));
  assertEquals(wide.readRows(0, 2, "keys"), sequence.readRows(0, 1, "keys"));
  assertEquals(wide.describe().granularity, "query_head");
  const error = assertThrows(() => wide.fork("kv_head"), NativeError);
  assertEquals(error.kind, "argument");
});

Deno.test("Sequence.readRows() gives recorded rows back", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  recordAll(sequence, 3);
  const { k, v } = tensors(3, 11);
  assertEquals(sequence.readRows(1, 1, "keys"), k.slice(24));
  assertEquals(sequence.readRows(1, 0, "values"), v.slice(0, 24));
  assertEquals([...sequence.positions(1, 0)], [0, 1, 2]);
  assertThrows(() => sequence.readRows(2, 0, "keys"), RangeError, "layer is 2");
  assertThrows(() => sequence.positions(0, 2), RangeError, "head is 2");
});

Deno.test("Sequence.recordLayer() refuses tensors of another length", () => {
  using device = openDevice();
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  sequence.record(3);
  assertThrows(
    () => sequence.recordLayer(0, tensors(4)),
    RangeError,
    "q must have 96 elements: it has 128",
  );
});

Deno.test("prefill and decode give the same tokens alone and in a batch", async () => {
  await withoutLeaks(async (device) => {
    using model = openModel(device);
    using cache = openCache(device);
    const prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3]];
    const alone: Uint32Array[] = [];
    for (const prompt of prompts) {
      using sequence = cache.sequence("kv_head");
      await read(model, sequence, prompt);
      const { tokens } = await decode(model, cache, [sequence], 5);
      assertEquals(tokens[0]?.length, 5);
      alone.push(...tokens);
    }
    using batch = new DisposableStack();
    const sequences = prompts.map(() => batch.use(cache.sequence("kv_head")));
    for (const [i, sequence] of sequences.entries()) {
      await read(model, sequence, prompts[i] ?? []);
    }
    const { tokens, logits } = await decode(model, cache, sequences, 5, {
      logits: true,
    });
    assertEquals(tokens, alone);
    assertEquals(logits?.length, 5 * 3 * VOCAB);
    assertEquals(sequences[1]?.rows(), [[10, 10], [10, 10]]);
    assertEquals(sequences[1]?.describe().position, 10);
  });
});

Deno.test("Sequence.prefill() refuses what will be kept where it is no number of bytes or has no room", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = new Cache(device, {
    ...SHAPE,
    rowDtype: "f32",
    limitBytes: 1e6,
  });
  using sequence = cache.sequence("kv_head");
  const begin = (keptBytes: number) =>
    sequence.prefill(model, [1, 2, 3], undefined, { keptBytes });
  for (const wrong of [-1, NaN, Infinity]) {
    assertThrows(() => begin(wrong), RangeError, "keptBytes is");
  }
  const error = assertThrows(() => begin(1e6 + 1), NativeError, "bytes needed");
  assertEquals(error.kind, "memory");
  const prefill = begin(9e5);
  await prefill.layers(0, prefill.layerCount);
  prefill.end();
  assertEquals(sequence.describe().position, 3);
});

Deno.test("Prefill.logits() ends with the logits of the sequence", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  assertThrows(() => sequence.logits(), NativeError);
  const prefill = sequence.prefill(model, [1, 2, 3]);
  for (let layer = 0; layer < prefill.layerCount; layer++) {
    await prefill.layers(layer, 1, { phase: "project" });
    await prefill.layers(layer, 1, { phase: "attend" });
  }
  const all = prefill.logits();
  prefill.end();
  assertEquals(all.subarray(2 * VOCAB), sequence.logits());
});

Deno.test("Sequence.extend() gives the logits of a prompt that was longer", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using whole = cache.sequence("kv_head");
  using parts = cache.sequence("kv_head");
  await read(model, whole, [1, 2, 3, 4, 5]);
  await read(model, parts, [1, 2, 3]);
  await parts.extend(model, [4, 5]);
  const expected = whole.logits();
  parts.logits().forEach((logit, i) =>
    assert(Math.abs(logit - (expected[i] ?? NaN)) < 1e-4)
  );
});

Deno.test("Sequence.setSampling() ends a sequence at a stop token", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using first = cache.sequence("kv_head");
  await read(model, first, [1, 2, 3]);
  using second = first.fork();
  const { tokens: [free] } = await decode(model, cache, [first], 4);
  const stop = [free?.[1] ?? 0];
  second.setSampling({ ...GREEDY, stop });
  const { tokens: [cut] } = await decode(model, cache, [second], 4);
  assertEquals(cut, free?.subarray(0, (free?.indexOf(stop[0] ?? 0) ?? 0) + 1));
  assert(second.describe().finished);
});

Deno.test("Sequence.setSampling() draws by seed and nothing else", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using first = cache.sequence("kv_head");
  await read(model, first, [1, 2, 3]);
  const draws: string[] = [];
  for (const seed of [1, 1, 2 ** 40]) {
    using fork = first.fork();
    fork.setSampling({ ...GREEDY, temperature: 2, seed });
    const { tokens } = await decode(model, cache, [fork], 12);
    draws.push(`${tokens[0]}`);
  }
  assertEquals(draws[0], draws[1]);
  assert(draws[0] !== draws[2]);
  assertThrows(
    () => first.setSampling({ ...GREEDY, topP: 0 }),
    RangeError,
    "topP is 0",
  );
});

Deno.test("decode refuses what does not belong together", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using other = openCache(device);
  using sequence = cache.sequence("kv_head");
  await assertRejects(
    () => decode(model, cache, [sequence, sequence], 1),
    TypeError,
    "each sequence once",
  );
  await assertRejects(
    () => decode(model, other, [sequence], 1),
    TypeError,
    "must belong to the cache",
  );
  await assertRejects(() => decode(model, cache, [], 1), RangeError);
  await assertRejects(() => decode(model, cache, [sequence], 0), RangeError);
  using narrow = new Cache(device, { ...SHAPE, layers: 3, rowDtype: "f32" });
  using elsewhere = narrow.sequence("kv_head");
  await assertRejects(
    () => decode(model, narrow, [elsewhere], 1),
    RangeError,
    "the same layers: 2 and 3",
  );
});

Deno.test("a cancelled call rejects with the signal's reason", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  await assertRejects(
    () =>
      sequence.prefill(model, [1, 2, 3]).layers(0, 2, {
        signal: AbortSignal.abort(new Error("enough")),
      }),
    Error,
    "enough",
  );
  using running = cache.sequence("kv_head");
  await read(model, running, [1]);
  const stopper = new AbortController();
  const call = decode(model, cache, [running], 200_000, {
    signal: stopper.signal,
  });
  stopper.abort(new Error("stop now"));
  await assertRejects(() => call, Error, "stop now");
});

Deno.test("progress counts the layers done", async () => {
  using device = openDevice();
  using model = openModel(device);
  using cache = openCache(device);
  using sequence = cache.sequence("kv_head");
  const seen: number[] = [];
  await sequence.prefill(model, [1, 2, 3]).layers(0, 2, {
    onProgress: (done) => seen.push(done),
  });
  assertEquals(seen.at(-1), 2);
});

Deno.test("handles may be disposed while a call runs; a second call is refused", async () => {
  await withoutLeaks(async (device) => {
    const model = openModel(device);
    const cache = openCache(device);
    const sequence = cache.sequence("kv_head");
    const idle = cache.sequence("kv_head");
    await read(model, sequence, [1, 2, 3]);
    const call = decode(model, cache, [sequence], 2000);
    const busy = await assertRejects(
      () => decode(model, cache, [idle], 1),
      NativeError,
    );
    assertEquals(busy.kind, "busy");
    for (const handle of [idle, sequence, cache, model]) {
      handle[Symbol.dispose]();
    }
    assertEquals((await call).tokens[0]?.length, 2000);
    assertThrows(() => cache.ledger(), TypeError);
  });
});
