/**
 * A Hugging Face model folder: configuration, weights, tokenizer and generation settings, all checked. Opening reads
 * the small files and the weight files' headers; the weights themselves are streamed later by `loadWeights`. Needs read
 * permission for the folder.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { basename, join } from "@std/path";
import {
  decodeUtf8,
  fileExists,
  malformed,
  parseJsonObject,
  readBounded,
} from "./_file.ts";
import { parseModelConfig } from "./config.ts";
import { type GenerationConfig, parseGenerationConfig } from "./generation.ts";
import { readWeightHeaders, type TensorDtype } from "./safetensors.ts";
import { type LoadPlan, planLoad } from "./tensors.ts";
import { createTokenizer, type Tokenizer } from "./tokenizer.ts";
import type { ModelConfig, RopeSummary, WeightDtype } from "./types.ts";

/** Largest small file that is read, in bytes. */
const MAX_JSON_BYTES = 256 * 2 ** 20;
/** Small files that decide what a model answers, in the order in which they are hashed. */
const SMALL_FILES = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
];

/** What `kvf models inspect` shows. */
export interface ModelSummary {
  /** The folder. */
  path: string;
  /** Architecture, as `config.json` names it. */
  architecture: string;
  /** Short family name. */
  family: string;
  /** Sizes of the model. */
  shape: Pick<
    ModelConfig,
    | "layers"
    | "hidden"
    | "queryHeads"
    | "kvHeads"
    | "headDim"
    | "intermediate"
    | "vocab"
    | "experts"
    | "expertsUsed"
  >;
  /** Tokens that the model was made for. */
  maxPositions: number;
  /** Weights. */
  parameters: number;
  /** Bytes of the weights in the files. */
  weightBytes: number;
  /** Weight files, without the folder. */
  weightFiles: string[];
  /** Element type that `config.json` names, or that of the embedding table. */
  dtype: WeightDtype;
  /** Tensors per element type in the files. */
  tensorDtypes: Record<string, number>;
  /** Names of tensors that are in the files and not used. */
  ignoredTensors: string[];
  /** Bytes of one token's keys and values over all layers, by cache row type, without page tables. */
  cacheBytesPerToken: Record<WeightDtype, number>;
  /** Rotary embedding. */
  rope: RopeSummary;
  /** Layers per sliding window in tokens; `none` for full attention. */
  windows: Record<string, number>;
  /** What is special: biases, norms, tied embeddings. */
  features: string[];
  /** Tokens that end an answer. */
  stopIds: number[];
  /** The tokenizer, if there is one. */
  tokenizer: { vocabSize: number; chatTemplate: boolean } | null;
}

/** An opened model folder. */
export interface ModelFolder {
  /** The folder, as it was given. */
  readonly path: string;
  /** The model's shape. */
  readonly config: ModelConfig;
  /** The tokenizer; without one a model takes and gives token ids. */
  readonly tokenizer: Tokenizer | undefined;
  /** Stop tokens and suggested sampling. */
  readonly generation: GenerationConfig;
  /** Weight files. */
  readonly weightFiles: readonly string[];
  /** Where every tensor lies, for `loadWeights`. */
  readonly plan: LoadPlan;
  /**
   * Identity of the model: 64 hexadecimal digits that follow from what the folder holds, not from where it lies.
   * SHA-256 over the small files that decide what it answers (`config.json`, `generation_config.json`,
   * `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`), each as name, size and content, then over each
   * weight file's name, size and tensor entries, and of each tensor its bytes, or where it has more than 64 KiB, 16
   * blocks of 4 KiB that are spread evenly from its first byte to its last. Computed once.
   */
  hash(): string;
  /** Facts for people. */
  inspect(): ModelSummary;
}

/** The content of a file that may be absent. */
function readText(path: string): string | undefined {
  return fileExists(path)
    ? decodeUtf8(readBounded(path, MAX_JSON_BYTES), path)
    : undefined;
}

function readObject(path: string): Record<string, unknown> | undefined {
  const text = readText(path);
  return text === undefined ? undefined : parseJsonObject(text, path);
}

function openTokenizer(
  folder: string,
  config: ModelConfig,
): Tokenizer | undefined {
  const file = join(folder, "tokenizer.json");
  const json = readObject(file);
  if (json === undefined) return undefined;
  const configFile = join(folder, "tokenizer_config.json");
  const settings = readObject(configFile);
  const chatTemplateFile = join(folder, "chat_template.jinja");
  const chatTemplate = readText(chatTemplateFile);
  return createTokenizer(json, {
    file,
    configFile,
    chatTemplateFile,
    bosId: config.bosId,
    eosId: config.eosIds[0],
    ...(settings === undefined ? {} : { config: settings }),
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
  });
}

const FILE_DTYPES: Partial<Record<TensorDtype, WeightDtype>> = {
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
};

/**
 * Opens a model folder.
 *
 * @param folder The folder.
 * @returns Its content, checked.
 * @throws {SyntaxError} A file is broken; the message names it and the field or tensor.
 * @throws {RangeError} The model asks for something that the runtime does not do.
 * @throws {Deno.errors.NotFound} The folder lacks `config.json` or weights.
 */
export function openModelFolder(folder: string): ModelFolder {
  const configFile = join(folder, "config.json");
  const json = readObject(configFile);
  if (json === undefined) {
    throw new Deno.errors.NotFound(
      `Cannot open a model as the folder must hold "config.json": "${folder}"`,
    );
  }
  // An unknown architecture is said before anything about its weights.
  parseModelConfig(json, configFile);
  const headers = readWeightHeaders(folder);
  const embedding = headers.map((h) =>
    h.tensors.get("model.embed_tokens.weight")
  ).find((t) => t !== undefined);
  const config = parseModelConfig(json, configFile, {
    defaultDtype: (embedding && FILE_DTYPES[embedding.dtype]) ?? "f32",
  });
  const plan = planLoad(headers, config);
  const tokenizer = openTokenizer(folder, config);
  const generationFile = join(folder, "generation_config.json");
  const generation = parseGenerationConfig(
    readObject(generationFile) ?? {},
    generationFile,
    config,
    tokenizer,
  );
  let hash: string | undefined;
  return {
    path: folder,
    config,
    tokenizer,
    generation,
    weightFiles: headers.map((h) => h.file),
    plan,
    hash: () => hash ??= hashFolder(folder, plan),
    inspect: () => summarise(folder, config, plan, generation, tokenizer),
  };
}

/** Bytes of one sampled block. */
const BLOCK_BYTES = 4096;
/** Sampled blocks of a tensor. */
const BLOCKS = 16;

function hashFolder(folder: string, plan: LoadPlan): string {
  const hash = createHash("sha256");
  const add = (name: string, content: Uint8Array): void => {
    hash.update(`${name}\0${content.length}\0`);
    hash.update(content);
  };
  for (const name of SMALL_FILES) {
    const path = join(folder, name);
    if (fileExists(path)) add(name, readBounded(path, MAX_JSON_BYTES));
  }
  const block = new Uint8Array(BLOCK_BYTES * BLOCKS);
  for (const header of plan.headers) {
    const { file, fileBytes } = header;
    hash.update(`${basename(file)}\0${fileBytes}\0`);
    using handle = Deno.openSync(file);
    for (
      const { name, dtype, shape, start, bytes } of header.tensors.values()
    ) {
      hash.update(`${JSON.stringify([name, dtype, shape, bytes])}\0`);
      const whole = bytes <= block.length;
      const count = whole ? 1 : BLOCKS;
      const size = whole ? bytes : BLOCK_BYTES;
      for (let i = 0; i < count; i++) {
        const offset = whole
          ? 0
          : Math.floor((i * (bytes - BLOCK_BYTES)) / (BLOCKS - 1));
        handle.seekSync(start + offset, Deno.SeekMode.Start);
        let done = 0;
        while (done < size) {
          const n = handle.readSync(block.subarray(done, size));
          if (n === null || n === 0) {
            throw malformed(file, `tensor "${name}" must be complete`, offset);
          }
          done += n;
        }
        hash.update(block.subarray(0, size));
      }
    }
  }
  return hash.digest("hex");
}

function summarise(
  path: string,
  config: ModelConfig,
  plan: LoadPlan,
  generation: GenerationConfig,
  tokenizer: Tokenizer | undefined,
): ModelSummary {
  const tensorDtypes: Record<string, number> = {};
  for (const { tensor } of plan.entries.values()) {
    tensorDtypes[tensor.dtype] = (tensorDtypes[tensor.dtype] ?? 0) + 1;
  }
  const windows: Record<string, number> = {};
  for (const window of config.layerWindow) {
    const key = window === 0 ? "none" : String(window);
    windows[key] = (windows[key] ?? 0) + 1;
  }
  const elements = 2 * config.layers * config.kvHeads * config.headDim;
  const features: [name: string, present: boolean][] = [
    ["QKV bias", config.qkvBias],
    ["output bias", config.oBias],
    ["QK norm", config.qkNorm],
    ["tied embeddings", config.tied],
  ];
  return {
    path,
    architecture: config.architecture,
    family: config.family,
    shape: {
      layers: config.layers,
      hidden: config.hidden,
      queryHeads: config.queryHeads,
      kvHeads: config.kvHeads,
      headDim: config.headDim,
      intermediate: config.intermediate,
      vocab: config.vocab,
      experts: config.experts,
      expertsUsed: config.expertsUsed,
    },
    maxPositions: config.maxPositions,
    parameters: plan.parameters,
    weightBytes: plan.bytes,
    weightFiles: plan.headers.map((h) => basename(h.file)),
    dtype: config.dtype,
    tensorDtypes,
    ignoredTensors: plan.ignored.map((t) => t.name),
    cacheBytesPerToken: {
      f32: 4 * elements,
      f16: 2 * elements,
      bf16: 2 * elements,
    },
    rope: config.rope,
    windows,
    features: features.filter(([, present]) => present).map(([name]) => name),
    stopIds: generation.stopIds,
    tokenizer: tokenizer
      ? {
        vocabSize: tokenizer.vocabSize,
        chatTemplate: tokenizer.hasChatTemplate,
      }
      : null,
  };
}
