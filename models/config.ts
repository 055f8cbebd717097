/**
 * Reads `config.json` of a Hugging Face model folder. Fields that are not used may hold anything; fields that change
 * what the model computes are checked, and refused when the runtime does not do what they ask for.
 *
 * @module
 */
import {
  decodeUtf8,
  malformed,
  nearestFirst,
  parseJsonObject,
  readBounded,
  unsupported,
} from "./_file.ts";
import { type Family, readDecoder } from "./families/_decoder.ts";
import { llama } from "./families/llama.ts";
import { mistral } from "./families/mistral.ts";
import { mixtral } from "./families/mixtral.ts";
import { qwen2 } from "./families/qwen2.ts";
import { qwen3 } from "./families/qwen3.ts";
import type { ModelConfig, WeightDtype } from "./types.ts";

const FAMILIES: ReadonlyMap<string, Family> = new Map(
  [llama, mistral, mixtral, qwen2, qwen3].map((f) => [f.architecture, f]),
);

/** Architectures that the runtime knows, as `config.json` names them. */
export const ARCHITECTURES: readonly string[] = [...FAMILIES.keys()];

/** Largest `config.json` that is read, in bytes. */
const MAX_CONFIG_BYTES = 16 * 2 ** 20;

/** Options of {@linkcode parseModelConfig} and {@linkcode readModelConfig}. */
export interface ModelConfigOptions {
  /** Element type where the file does not say one. Default: `f32`. */
  defaultDtype?: WeightDtype;
}

/**
 * Reads the content of a `config.json`.
 *
 * @param json The parsed file.
 * @param file Its name, for errors.
 * @param options See {@linkcode ModelConfigOptions}.
 * @returns The model's shape.
 * @throws {SyntaxError} A field is missing, has the wrong type or is out of bounds.
 * @throws {RangeError} The file asks for something that the runtime does not do.
 */
export function parseModelConfig(
  json: Record<string, unknown>,
  file: string,
  options: ModelConfigOptions = {},
): ModelConfig {
  const named = json["architectures"];
  if (
    !Array.isArray(named) || named.length === 0 ||
    !named.every((n) => typeof n === "string")
  ) {
    throw malformed(
      file,
      'field "architectures" must be a list of names',
      named ?? "missing",
    );
  }
  const family = named.map((n) => FAMILIES.get(n)).find((f) => f !== undefined);
  if (family === undefined) {
    const known = nearestFirst(String(named[0]), ARCHITECTURES).join(", ");
    throw unsupported(file, `architectures must name one of ${known}`, named);
  }
  return readDecoder(family, json, file, options.defaultDtype ?? "f32");
}

/**
 * Reads a `config.json` from disk.
 *
 * @param path The file.
 * @param options See {@linkcode ModelConfigOptions}.
 * @returns The model's shape.
 * @throws {SyntaxError | RangeError} As {@linkcode parseModelConfig}.
 */
export function readModelConfig(
  path: string,
  options: ModelConfigOptions = {},
): ModelConfig {
  const text = decodeUtf8(readBounded(path, MAX_CONFIG_BYTES), path);
  return parseModelConfig(parseJsonObject(text, path), path, options);
}
