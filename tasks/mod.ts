/**
 * Benchmark tasks by name.
 *
 * @module
 */
import {
  LONGBENCH_DATA_SETS,
  LONGBENCH_PREFIX,
  type LongBenchOptions,
  longbenchTask,
} from "./longbench/mod.ts";
import { type NeedleOptions, needleTask } from "./needle.ts";
import { RULER_TASKS, type RulerOptions, rulerTask } from "./ruler/mod.ts";
import type { Task } from "./types.ts";

export * from "./longbench/mod.ts";
export * from "./needle.ts";
export * from "./ruler/mod.ts";
export type { Example, Json, Metric, Task, TextCodec } from "./types.ts";

/** A task that can be made by name. */
export interface TaskDefinition {
  /** Name in the registry. */
  name: string;
  /** Makes the task; options are checked. */
  create(options: unknown): Task;
}

/** Tasks that need no data, by name. */
export const TASKS: { readonly [name: string]: TaskDefinition } = Object
  .fromEntries([
    {
      name: "needle",
      create: (options: unknown): Task => needleTask(options as NeedleOptions),
    },
    ...RULER_TASKS.map((name) => ({
      name,
      create: (options: unknown): Task =>
        rulerTask(name, options as RulerOptions),
    })),
  ].map((definition) => [definition.name, definition]));

/** Tasks that need data of the user, by name: `longbench/<data set>`. */
export const DATA_TASKS: { readonly [name: string]: TaskDefinition } = Object
  .fromEntries(
    [...LONGBENCH_DATA_SETS.keys()].map((dataset) => {
      const name = LONGBENCH_PREFIX + dataset;
      const create = (options: unknown): Task =>
        longbenchTask(dataset, options as LongBenchOptions);
      return [name, { name, create }];
    }),
  );

/** Options whose values are files or folders of the user. */
export const PATH_OPTIONS: readonly string[] = [
  "data",
  "prompts",
  "lengths",
  "wording",
  "haystack",
  "squad",
  "hotpot",
];

/** Files and folders that the options of a task name; what a process must be allowed to read. */
export function taskPaths(options: { [name: string]: unknown }): string[] {
  return PATH_OPTIONS.map((name) => options[name])
    .filter((value) => typeof value === "string");
}

/**
 * Makes a task by name. Files that its options name are read at once.
 *
 * @throws {TypeError} If there is no task of that name.
 * @throws If an option is wrong or unknown; the message names it.
 * @throws {SyntaxError} If a file is broken; the message names it and the line.
 */
export function createTask(name: string, options: unknown = {}): Task {
  const known = { ...TASKS, ...DATA_TASKS };
  const definition = Object.hasOwn(known, name) ? known[name] : undefined;
  if (definition === undefined) {
    throw new TypeError(
      `Cannot create a task as its name must be one of ${
        Object.keys(known).join(", ")
      }: name is "${name}"`,
    );
  }
  return definition.create(options);
}
