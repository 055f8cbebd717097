/**
 * What a model of several GB costs a device beside its arithmetic: the time and the host memory of loading it, and the
 * bytes that methods with budgets of their own per head keep of a long prompt.
 *
 *     deno task bench:model [--device=cuda] [--config=FILE] [--layers=8] [--length=8192] [--rows=1024] [--repeats=3]
 *                           [--only=loading,reading,bytes] [--folder=results/bench_model] [--json]
 *
 * For `loading` a model folder of `--layers` layers of the shape is written to `--folder`, sharded in two files, and
 * removed in the end; it is read as it was just written, from the system's page cache. `reading` reads those files alone,
 * with one reader and with several. `bytes` takes the whole shape with random weights. Shows each measurement as it comes,
 * and a table of them, or with `--json` all of them, in the end. Needs to read tasks/gpu and results, to write results, and the device's library.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { join, resolve } from "@std/path";
import {
  crossConfigurations,
  generate,
  LanguageModel,
  parseDevice,
} from "../eval/engine/mod.ts";
import { Device } from "../ffi/mod.ts";
import { resolveMethod } from "../methods/mod.ts";
import { type ModelConfig, readModelConfig } from "../models/mod.ts";
import { BuildError, reportBuildErrors, ROOT } from "./build.ts";
import { type Measurement, table } from "./gpu/_table.ts";

const SECTIONS = ["loading", "reading", "bytes"];
const FLAGS = [
  "device",
  "config",
  "layers",
  "length",
  "rows",
  "repeats",
  "only",
  "folder",
] as const;

interface Options {
  device: string;
  config: string;
  layers: number;
  length: number;
  rows: number;
  repeats: number;
  only: string[];
  folder: string;
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: [...FLAGS],
    boolean: ["json"],
    default: {
      device: "cuda",
      config: join(ROOT, "tasks/gpu/llama-3-8b.json"),
      layers: "8",
      length: "8192",
      rows: "1024",
      repeats: "3",
      only: SECTIONS.join(","),
      folder: "results/bench_model",
    },
    unknown: (arg: string) => {
      throw new BuildError(
        `Cannot measure the model as an argument is unknown: "${arg}"; ${
          FLAGS.map((name) => `--${name}`).join(", ")
        } and --json are known`,
      );
    },
  });
  const count = (name: "layers" | "length" | "rows" | "repeats"): number => {
    const text = String(flags[name]);
    if (/^[1-9]\d{0,6}$/.test(text)) return Number(text);
    throw new BuildError(
      `Cannot measure the model as --${name} must be a whole number above 0: it is "${text}"`,
    );
  };
  const options: Options = {
    device: String(flags.device),
    config: String(flags.config),
    layers: count("layers"),
    length: count("length"),
    rows: count("rows"),
    repeats: count("repeats"),
    only: String(flags.only).split(","),
    folder: resolve(ROOT, String(flags.folder)),
  };
  const stranger = options.only.find((name) => !SECTIONS.includes(name));
  if (stranger !== undefined) {
    throw new BuildError(
      `Cannot measure the model as --only must name ${
        SECTIONS.join(", ")
      }: "${stranger}"`,
    );
  }
  const measured: Measurement[] = [];
  const tell = (line: Measurement): void => {
    measured.push(line);
    print(Deno.stderr, JSON.stringify(line));
  };
  const { only } = options;
  if (only.includes("reading") || only.includes("loading")) {
    try {
      const shards = writeFolder(options);
      // Loading first: memory's peak never falls.
      if (only.includes("loading")) await loading(options, tell);
      if (only.includes("reading")) await reading(shards, options, tell);
    } finally {
      await Deno.remove(options.folder, { recursive: true });
    }
  }
  if (only.includes("bytes")) await bytes(options, tell);
  print(
    Deno.stdout,
    flags.json
      ? JSON.stringify({ shape: options.config, measured }, null, 2)
      : table(readModelConfig(options.config), measured, []),
  );
}

function print(to: { writeSync(p: Uint8Array): number }, text: string): void {
  to.writeSync(new TextEncoder().encode(`${text}\n`));
}

/* ---- A folder with weights ---- */

/** Shapes of a Llama model's tensors, those of layers one after the other. */
function shapesOf(config: ModelConfig, layers: number): [string, number[]][] {
  const { hidden, queryHeads, kvHeads, headDim, intermediate, vocab } = config;
  const layer: Record<string, number[]> = {
    "input_layernorm": [hidden],
    "self_attn.q_proj": [queryHeads * headDim, hidden],
    "self_attn.k_proj": [kvHeads * headDim, hidden],
    "self_attn.v_proj": [kvHeads * headDim, hidden],
    "self_attn.o_proj": [hidden, queryHeads * headDim],
    "post_attention_layernorm": [hidden],
    "mlp.gate_proj": [intermediate, hidden],
    "mlp.up_proj": [intermediate, hidden],
    "mlp.down_proj": [hidden, intermediate],
  };
  return [
    ["model.embed_tokens.weight", [vocab, hidden]],
    ...Array.from(
      { length: layers },
      (_, i) =>
        Object.entries(layer).map(([name, shape]): [string, number[]] => [
          `model.layers.${i}.${name}.weight`,
          shape,
        ]),
    ).flat(),
    ["model.norm.weight", [hidden]],
    ["lm_head.weight", [vocab, hidden]],
  ];
}

const sizeOf = (shape: readonly number[]): number =>
  2 * shape.reduce((product, n) => product * n, 1);

/** Writes a model of BF16 weights near zero, none of which is special, in two shards; returns the shards' paths. */
function writeFolder({ config: path, layers, folder }: Options): string[] {
  const config = readModelConfig(path);
  const shapes = shapesOf(config, layers);
  const total = shapes.reduce((sum, [, shape]) => sum + sizeOf(shape), 0);
  const parts: [string, number[]][][] = [[], []];
  let before = 0;
  for (const [name, shape] of shapes) {
    parts[before < total / 2 ? 0 : 1]!.push([name, shape]);
    before += sizeOf(shape);
  }
  Deno.mkdirSync(folder, { recursive: true });
  Deno.writeTextFileSync(
    join(folder, "config.json"),
    JSON.stringify({
      ...JSON.parse(Deno.readTextFileSync(path)),
      "num_hidden_layers": layers,
    }),
  );
  // Longer than a page and of no round length, so that no two rows are alike.
  const block = new Uint16Array((4 << 20) + 331);
  for (let i = 0, x = 1; i < block.length; i++) {
    x = Math.imul(x, 1664525) + 1013904223 | 0;
    block[i] = 0x3c00 | x >>> 16 & 0x80ff;
  }
  const map: Record<string, string> = {};
  const shards = parts.map((tensors, i) => {
    const name = `model-0000${i + 1}-of-00002.safetensors`;
    let at = 0;
    const header = Object.fromEntries(tensors.map(([tensor, shape]) => {
      map[tensor] = name;
      const start = at;
      at += sizeOf(shape);
      return [tensor, { dtype: "BF16", shape, "data_offsets": [start, at] }];
    }));
    const text = new TextEncoder().encode(JSON.stringify(header));
    const head = new Uint8Array(8 + text.length);
    new DataView(head.buffer).setBigUint64(0, BigInt(text.length), true);
    head.set(text, 8);
    using file = Deno.openSync(join(folder, name), {
      write: true,
      create: true,
      truncate: true,
    });
    writeAll(file, head);
    const bytes = new Uint8Array(block.buffer);
    for (let left = at; left > 0; left -= bytes.length) {
      writeAll(file, bytes.subarray(0, Math.min(left, bytes.length)));
    }
    return join(folder, name);
  });
  Deno.writeTextFileSync(
    join(folder, "model.safetensors.index.json"),
    JSON.stringify({ "metadata": {}, "weight_map": map }),
  );
  return shards;
}

function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    at += file.writeSync(bytes.subarray(at));
  }
}

/* ---- Sections ---- */

/** The files alone: what any loader in this process may hope for. */
async function reading(
  shards: readonly string[],
  { repeats }: Options,
  tell: (line: Measurement) => void,
): Promise<void> {
  for (const readers of [1, 2, 4, 8]) {
    for (const slice of [1 << 20, 2 << 20, 4 << 20]) {
      const buffer = new ArrayBuffer(readers * slice);
      const rates: number[] = [];
      for (let i = 0; i < repeats; i++) {
        const start = performance.now();
        let bytes = 0;
        for (const path of shards) {
          bytes += await readAll(path, readers, slice, buffer);
        }
        rates.push(bytes / (performance.now() - start) * 1e3);
      }
      tell({ what: "reading", readers, slice, "bytes_per_s": middle(rates) });
    }
  }
}

/** Several readers take the slices of a file in turn. Returns the bytes. */
async function readAll(
  path: string,
  readers: number,
  slice: number,
  buffer: ArrayBuffer,
): Promise<number> {
  let next = 0, bytes = 0;
  const { size } = Deno.statSync(path);
  await Promise.all(Array.from({ length: readers }, async (_, i) => {
    using file = Deno.openSync(path);
    for (;;) {
      const at = next;
      if (at >= size) return;
      next += slice;
      file.seekSync(at, Deno.SeekMode.Start);
      const room = new Uint8Array(
        buffer,
        i * slice,
        Math.min(slice, size - at),
      );
      for (let done = 0; done < room.length;) {
        done += await file.read(room.subarray(done)) ?? room.length;
      }
      bytes += room.length;
    }
  }));
  return bytes;
}

/** The model through the loader, as every command loads one. */
async function loading(
  { device: name, folder, repeats }: Options,
  tell: (line: Measurement) => void,
): Promise<void> {
  const peak = (): number => process.resourceUsage().maxRSS * 1024;
  // The library and a GPU's driver are there before the count begins.
  using _device = new Device(parseDevice(name));
  const before = peak();
  const ms: number[] = [];
  let weights = 0;
  for (let i = 0; i < repeats; i++) {
    using model = await LanguageModel.load(folder, { device: name });
    weights = model.native.bytes;
    ms.push(model.facts.loadMs);
  }
  tell({
    what: "loading",
    device: name,
    ms: middle(ms),
    "first_ms": ms[0],
    bytes: weights,
    "bytes_per_s": weights / middle(ms) * 1e3,
    "host_peak_bytes": peak() - before,
  });
}

/** Bytes of a prompt's cache after methods of several kinds of budgets, beside what their rows need. */
async function bytes(
  { device, config, length, rows }: Options,
  tell: (line: Measurement) => void,
): Promise<void> {
  using model = LanguageModel.random(config, { device });
  const { layers, kvHeads, headDim } = model.shape;
  const prompt = Array.from(
    { length },
    (_, i) => (i * 7919 + 13) % model.native.config.vocab,
  );
  const methods = ["snapkv", "pyramidkv", "adakv"].map(resolveMethod);
  for (const method of methods) {
    const configurations = crossConfigurations([method], [rows], {}, "kv_head");
    const [one] = await generate(model, prompt, configurations, {
      maxNewTokens: 1,
    });
    const kept = one!.cache.rows.flat();
    tell({
      what: "bytes",
      method: method.name,
      n: length,
      rows,
      "kept_rows": kept.reduce((sum, n) => sum + n, 0) / kept.length,
      least: Math.min(...kept),
      most: Math.max(...kept),
      "resident_bytes": one!.cache.residentBytes,
      "expected_bytes": rows * layers * kvHeads * 2 * headDim * 2,
      "full_bytes": length * layers * kvHeads * 2 * headDim * 2,
    });
  }
}

function middle(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
