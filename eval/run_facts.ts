/**
 * What a run writes down about its tasks, so that its records can be found again and done again.
 *
 * @module
 */
import { methodFile } from "../methods/mod.ts";
import type { LanguageModel } from "./engine/mod.ts";
import type { PreparedRun } from "./prepare.ts";
import { contentHash, type Json, type JsonObject } from "./records/mod.ts";

/**
 * Model, tasks with their recipes and counts, configurations with the user's files, for `run_meta`. Reports look for
 * records that are missing by it, and `kvf replay` does records again.
 */
export function runOptions(
  model: LanguageModel,
  prepared: readonly PreparedRun[],
): JsonObject {
  return {
    model: model.folder.path,
    runs: prepared.map(({ run, total }): Json => ({
      task: run.task.name,
      examples: total,
      options: run.task.options,
      recipe: run.task.recipe,
      seed: run.seed,
      protocol: plainJson(run.protocol ?? {}),
      configurations: run.configurations.map(
        ({ method, options, granularity }): Json => ({
          method: method.name,
          file: methodFile(method)?.path ?? null,
          options: plainJson(options),
          granularity,
        }),
      ),
    })),
  };
}

/** SHA-256 of model, data and prompts, for `run_meta`. */
export async function runHashes(
  model: LanguageModel,
  prepared: readonly PreparedRun[],
): Promise<{ [name: string]: string }> {
  const all = (name: "data" | "prompts"): Promise<string> =>
    contentHash(prepared.map(({ hashes }) => hashes[name]));
  return {
    model: model.folder.hash(),
    data: await all("data"),
    prompts: await all("prompts"),
  };
}

/** What JSON keeps of a value. */
export function plainJson(value: object): JsonObject {
  return JSON.parse(JSON.stringify(value)) as JsonObject;
}
