import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import fc from "fast-check";
import {
  loadWeights,
  type ModelConfig,
  parseModelConfig,
  planLoad,
  readSafetensorsHeader,
  readTensor,
  readWeightHeaders,
  TENSOR_KINDS,
  tensorSlots,
  type TensorToWrite,
  WEIGHT_DTYPES,
  type WeightSink,
  writeSafetensors,
} from "../../models/mod.ts";
import {
  assertClear,
  brokenJson,
  GOLDEN_MODELS,
  GOLDEN_NAMES,
  goldenConfig,
  RUNS,
  temporaryFolder,
} from "./_fixtures.ts";

function config(name: string, change: Record<string, unknown> = {}) {
  return parseModelConfig(
    { ...goldenConfig(name), ...change },
    join(GOLDEN_MODELS, name, "config.json"),
  );
}

/** Takes f32 rows as the native model would: each exactly once, complete at the end. */
class FakeSink implements WeightSink {
  readonly tensors = new Map<string, { data: Float32Array; rows: number }>();
  readonly buffers = new Set<ArrayBuffer>();
  largest = 0;
  done = false;
  #shapes = new Map<string, readonly number[]>();

  constructor(model: ModelConfig) {
    for (const { kind, layer, expert, shape } of tensorSlots(model)) {
      const key = `${TENSOR_KINDS[kind]}/${layer}/${expert}`;
      assert(!this.#shapes.has(key), key);
      this.#shapes.set(key, shape);
    }
  }

  load(
    kind: number,
    layer: number,
    expert: number,
    dtype: number,
    firstRow: number,
    rowCount: number,
    data: Uint8Array<ArrayBuffer>,
  ): void {
    assertEquals(dtype, WEIGHT_DTYPES.f32);
    const key = `${kind}/${layer}/${expert}`;
    const shape = this.#shapes.get(key)!;
    const columns = shape.at(-1)!;
    const rows = shape.length === 1 ? 1 : shape[0]!;
    const tensor = this.tensors.get(key) ??
      { data: new Float32Array(rows * columns), rows: 0 };
    this.tensors.set(key, tensor);
    assertEquals(firstRow, tensor.rows);
    assertEquals(data.length, rowCount * columns * 4);
    tensor.data.set(new Float32Array(data.slice().buffer), firstRow * columns);
    tensor.rows += rowCount;
    this.buffers.add(data.buffer);
    this.largest = Math.max(this.largest, data.buffer.byteLength);
  }

  ready(): void {
    for (const [key, shape] of this.#shapes) {
      const rows = shape.length === 1 ? 1 : shape[0]!;
      assertEquals(this.tensors.get(key)?.rows, rows, key);
    }
    this.done = true;
  }
}

Deno.test("TENSOR_KINDS and WEIGHT_DTYPES have the numbers of csrc/kvf.h", () => {
  const header = Deno.readTextFileSync(
    fromFileUrl(new URL("../../csrc/kvf.h", import.meta.url)),
  );
  const kinds = [...header.matchAll(/KVF_T_([A-Z_]+) = (\d+)/g)]
    .filter(([, name]) => name !== "COUNT")
    .map(([, name, n]) => [name!.replaceAll("_", "").toLowerCase(), Number(n)]);
  assertEquals(
    Object.entries(TENSOR_KINDS).map(([k, n]) => [k.toLowerCase(), n]),
    kinds,
  );
  const dtypes = /enum kvf_dtype \{(.*)\}/.exec(header)![1]!;
  assertEquals(
    [...dtypes.matchAll(/KVF_(\w+) = (\d)/g)]
      .map(([, name, n]) => [name!.toLowerCase(), Number(n)]),
    Object.entries(WEIGHT_DTYPES),
  );
});

for (const name of GOLDEN_NAMES) {
  Deno.test(`loadWeights() streams ${name} completely through one small buffer`, async () => {
    const folder = join(GOLDEN_MODELS, name);
    const model = config(name);
    const sink = new FakeSink(model);
    const seen: number[] = [];
    const plan = await loadWeights(folder, model, sink, {
      bufferBytes: 3000,
      onProgress: ({ doneBytes }) => seen.push(doneBytes),
    });
    assert(sink.done);
    assertEquals(sink.buffers.size, 1);
    assertEquals(sink.largest, 3000);
    assertEquals(seen.at(-1), plan.bytes);
    assertEquals(seen, [...seen].sort((a, b) => a - b));
    const file = join(folder, "model.safetensors");
    for (const { slot } of plan.entries.values()) {
      const key = `${TENSOR_KINDS[slot.kind]}/${slot.layer}/${slot.expert}`;
      assertEquals(
        sink.tensors.get(key)!.data,
        readTensor(file, slot.name).data,
      );
    }
  });
}

Deno.test("loadWeights() reads ahead into parts of one buffer and hands rows over in order", async () => {
  const folder = join(GOLDEN_MODELS, "llama");
  const model = config("llama");
  const sink = new FakeSink(model);
  const places = new Set<number>();
  let begun: Uint8Array<ArrayBuffer> | undefined;
  await loadWeights(folder, model, {
    begin: (buffer) => void (begun = buffer),
    load: (...args) => {
      const data = args[6];
      assertEquals(data.buffer, begun!.buffer);
      places.add(data.byteOffset);
      sink.load(...args);
    },
    ready: () => sink.ready(),
  }, { bufferBytes: 4 << 20 });
  assert(sink.done);
  assertEquals(places, new Set([0, 1 << 20, 2 << 20, 3 << 20]));
  for (
    const { slot } of planLoad(readWeightHeaders(folder), model).entries
      .values()
  ) {
    assertEquals(
      sink.tensors.get(
        `${TENSOR_KINDS[slot.kind]}/${slot.layer}/${slot.expert}`,
      )!.data,
      readTensor(join(folder, "model.safetensors"), slot.name).data,
    );
  }
});

Deno.test("loadWeights() reports a file that ended early when the rows before were handed over", async () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "model.safetensors");
  const model = config("llama", { num_hidden_layers: 1 });
  writeSafetensors(file, zeros(model));
  const sink = new FakeSink(model);
  let chunks = 0;
  await assertRejects(
    () =>
      loadWeights(folder.path, model, {
        begin: () => Deno.truncateSync(file, 5000),
        load: () => void chunks++,
        ready: () => sink.ready(),
      }, { bufferBytes: 4 << 20 }),
    SyntaxError,
    file,
  );
  assertEquals([chunks, sink.done], [0, false]);
  writeSafetensors(file, zeros(model));
  await assertRejects(
    () =>
      loadWeights(folder.path, model, {
        load: () => {
          if (++chunks === 1) Deno.truncateSync(file, 5000);
        },
        ready: () => sink.ready(),
      }, { bufferBytes: 600 }),
    SyntaxError,
    "complete",
  );
  assert(chunks > 1, `${chunks} chunks`);
  assert(!sink.done);
});

Deno.test("loadWeights() rejects with the signal's reason and stops", async () => {
  const model = config("llama");
  const sink = new FakeSink(model);
  const control = new AbortController();
  const reason = new Error("enough");
  let chunks = 0;
  const error = await assertRejects(() =>
    loadWeights(join(GOLDEN_MODELS, "llama"), model, sink, {
      signal: control.signal,
      onProgress: () => {
        if (++chunks === 3) control.abort(reason);
      },
    })
  );
  assertEquals([error, chunks, sink.done], [reason, 3, false]);
});

Deno.test("loadWeights() waits for a sink that is asynchronous", async () => {
  const model = config("llama");
  const sink = new FakeSink(model);
  let running = 0;
  await loadWeights(join(GOLDEN_MODELS, "llama"), model, {
    load: async (...args) => {
      assertEquals(running++, 0);
      await Promise.resolve();
      sink.load(...args);
      running--;
    },
    ready: () => sink.ready(),
  });
  assert(sink.done);
});

Deno.test("loadWeights() passes a sink's failure on and closes the file", async () => {
  await assertRejects(
    () =>
      loadWeights(join(GOLDEN_MODELS, "llama"), config("llama"), {
        load: () => {
          throw new RangeError("full");
        },
        ready: () => {},
      }),
    RangeError,
    "full",
  );
});

/** Tensors that fit a model, all zero. */
function zeros(model: ModelConfig): Record<string, TensorToWrite> {
  const tensors: Record<string, TensorToWrite> = {};
  for (const { name, shape } of tensorSlots(model)) {
    const data = new Float32Array(shape.reduce((a, b) => a * b));
    tensors[name] = { shape, data };
  }
  return tensors;
}

Deno.test("planLoad() names the tensor that is missing, unexpected or of the wrong kind, and its file", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "model.safetensors");
  const model = config("llama", { num_hidden_layers: 1 });
  const q = "model.layers.0.self_attn.q_proj.weight";
  const plan = (change: (t: Record<string, TensorToWrite>) => void) => {
    const tensors = zeros(model);
    change(tensors);
    writeSafetensors(file, tensors);
    return planLoad([readSafetensorsHeader(file)], model);
  };
  const one = { shape: [1], data: new Float32Array(1) };
  const fails = (
    change: (t: Record<string, TensorToWrite>) => void,
    text: string,
  ) => {
    const { message } = assertThrows(() => plan(change), SyntaxError, text);
    assert(message.includes(file), message);
    return message;
  };
  assertEquals(plan(() => {}).ignored, []);
  assert(fails((t) => delete t[q], "missing").includes(q));
  fails((t) => t["extra"] = one, "extra");
  fails((t) => t["model.layers.1.mlp.up_proj.weight"] = one, "layers.1");
  assert(fails((t) => t[q] = one, "[64,64]").includes(q));
  const flat = { shape: [4096], data: new Float32Array(4096) };
  assert(fails((t) => t[q] = flat, "[4096]").includes(q));
  const wide = { shape: [64, 64], data: new Float64Array(4096) };
  assert(fails((t) => t[q] = wide, "F64").includes(q));
  const table = "model.layers.0.self_attn.rotary_emb.inv_freq";
  const { ignored } = plan((t) => t[table] = one);
  assertEquals(ignored.map((t) => t.name), [table]);
});

Deno.test("planLoad() accepts a second copy of tied embeddings and ignores it", () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "model.safetensors");
  const model = config("llama31-tied", { num_hidden_layers: 1 });
  const head = { shape: [256, 64], data: new Float32Array(256 * 64) };
  writeSafetensors(file, { ...zeros(model), "lm_head.weight": head });
  const plan = planLoad([readSafetensorsHeader(file)], model);
  assertEquals(plan.ignored.map((t) => t.name), ["lm_head.weight"]);
  assertEquals(plan.entries.has("lm_head.weight"), false);
});

Deno.test("planLoad() finds tensors over several files and takes mixed dtypes", async () => {
  using folder = temporaryFolder();
  const model = config("llama", { num_hidden_layers: 1 });
  const names = Object.entries(zeros(model));
  const half = names.slice(0, 5);
  const rest = names.slice(5).map(([name, { shape, data }]) => {
    const bits = new Uint16Array(data.length).fill(0x3f80);
    return [name, { shape, data: bits, dtype: "BF16" as const }] as const;
  });
  writeSafetensors(
    join(folder.path, "a.safetensors"),
    Object.fromEntries(half),
  );
  writeSafetensors(
    join(folder.path, "b.safetensors"),
    Object.fromEntries(rest),
  );
  const map = Object.fromEntries([
    ...half.map(([name]) => [name, "a.safetensors"]),
    ...rest.map(([name]) => [name, "b.safetensors"]),
  ]);
  Deno.writeTextFileSync(
    join(folder.path, "model.safetensors.index.json"),
    JSON.stringify({ weight_map: map }),
  );
  const counts = [0, 0, 0];
  let ready = 0;
  await loadWeights(folder.path, model, {
    load: (_kind, _layer, _expert, dtype, _first, _rows, data) => {
      counts[dtype]! += 1;
      if (dtype === WEIGHT_DTYPES.bf16) assertEquals(data[1], 0x3f);
    },
    ready: () => void ready++,
  });
  assertEquals([counts, ready], [[5, 0, names.length - 5], 1]);
});

Deno.test("planLoad() fails clearly and fast when configuration and weights do not fit", () => {
  const headers = readWeightHeaders(join(GOLDEN_MODELS, "mixtral"));
  fc.assert(
    fc.property(brokenJson(goldenConfig("mixtral")), (json) => {
      assertClear(
        () => planLoad(headers, parseModelConfig(json, GOLDEN_MODELS)),
        GOLDEN_MODELS,
      );
    }),
    RUNS,
  );
  const huge = config("mixtral", {
    num_hidden_layers: 4096,
    num_local_experts: 1024,
  });
  assertThrows(() => planLoad(headers, huge), SyntaxError, "[1024,64]");
});
