/**
 * What the runs of a folder set out to do, so that a run that was stopped is not taken for a whole one.
 *
 * @module
 */
import { canonicalJson } from "../records/mod.ts";
import type { EvalRecord, Json, JsonObject, RunMeta } from "../records/mod.ts";

/** Records that a run set out to write: one configuration on the examples of a task. */
export interface Planned {
  /** Content hash of the model. */
  model: string;
  /** Commit of the program. */
  commit: string;
  /** Name of the task. */
  task: string;
  /** Seed of the run. */
  seed: number;
  /** Name of the method. */
  method: string;
  /** Examples. */
  examples: number;
  /** Key of all that decides which records they are; see {@linkcode plannedKeyOf}. */
  key: string;
}

function keyOf(
  parts: {
    model: string;
    commit: string;
    task: string;
    options: Json;
    seed: number;
    method: string;
    methodOptions: Json;
    granularity: Json;
  },
): string {
  return canonicalJson(parts);
}

/** The key of the plan that a record belongs to. */
export function plannedKeyOf(record: EvalRecord): string {
  return keyOf({
    model: record.model.hash,
    commit: record.build.commit,
    task: record.task.name,
    options: record.task.options,
    seed: record.seed,
    method: record.method.name,
    methodOptions: record.method.options,
    granularity: record.generation.granularity ?? "kv_head",
  });
}

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const list = (value: Json | undefined): JsonObject[] =>
  Array.isArray(value) ? value.filter(isObject) : [];

/**
 * What starts of the program set out to do, each once. Starts that do not say how many examples a task has are passed
 * over.
 */
export function plannedOf(metas: Iterable<RunMeta>): Planned[] {
  const found = new Map<string, Planned>();
  for (const { commit, hashes, options } of metas) {
    for (const run of list(options.runs)) {
      const { task, seed, examples } = run;
      if (
        typeof task !== "string" || typeof seed !== "number" ||
        typeof examples !== "number"
      ) continue;
      for (const one of list(run.configurations)) {
        const model = hashes.model ?? "";
        const method = String(one.method);
        const key = keyOf({
          model,
          commit,
          task,
          options: run.options ?? {},
          seed,
          method,
          methodOptions: one.options ?? {},
          granularity: one.granularity ?? "kv_head",
        });
        found.set(key, { model, commit, task, seed, method, examples, key });
      }
    }
  }
  return [...found.values()];
}

/** How many of the planned records are not there, and the first plan that lacks some. */
export function countMissing(
  records: readonly EvalRecord[],
  planned: readonly Planned[],
): { missing: number; first?: Planned & { there: number } } {
  const there = new Map<string, number>();
  for (const record of records) {
    const key = plannedKeyOf(record);
    there.set(key, (there.get(key) ?? 0) + 1);
  }
  const gaps = planned.map((plan) => ({
    ...plan,
    there: there.get(plan.key) ?? 0,
  })).filter((plan) => plan.there < plan.examples);
  return {
    missing: gaps.reduce((sum, plan) => sum + plan.examples - plan.there, 0),
    ...(gaps[0] === undefined ? {} : { first: gaps[0] }),
  };
}
