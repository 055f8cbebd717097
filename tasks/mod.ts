/**
 * Benchmark tasks by name.
 *
 * @module
 */
import type { z } from "zod";
import { NEEDLE_SCHEMA, type NeedleOptions, needleTask } from "./needle.ts";
import {
  RULER_SCHEMA,
  RULER_TASKS,
  type RulerOptions,
  rulerTask,
} from "./ruler/mod.ts";
import type { Task } from "./types.ts";

export * from "./needle.ts";
export * from "./ruler/mod.ts";
export type { Example, Json, Metric, Task, TextCodec } from "./types.ts";

/** A task that can be made by name. */
export interface TaskDefinition {
  /** Name in the registry. */
  name: string;
  /** Options: types, defaults, descriptions. */
  schema: z.ZodType;
  /** Makes the task; options are checked. */
  create(options: unknown): Task;
}

/** All generated tasks by name. */
export const TASKS: { readonly [name: string]: TaskDefinition } = Object
  .fromEntries([
    {
      name: "needle",
      schema: NEEDLE_SCHEMA,
      create: (options: unknown): Task => needleTask(options as NeedleOptions),
    },
    ...RULER_TASKS.map((name) => ({
      name,
      schema: RULER_SCHEMA,
      create: (options: unknown): Task =>
        rulerTask(name, options as RulerOptions),
    })),
  ].map((definition) => [definition.name, definition]));

/**
 * Makes a task by name.
 *
 * @throws {TypeError} If there is no task of that name.
 * @throws {z.ZodError} If an option is wrong or unknown.
 */
export function createTask(name: string, options: unknown = {}): Task {
  const definition = Object.hasOwn(TASKS, name) ? TASKS[name] : undefined;
  if (definition === undefined) {
    throw new TypeError(
      `Cannot create a task as its name must be one of ${
        Object.keys(TASKS).join(", ")
      }: name is "${name}"`,
    );
  }
  return definition.create(options);
}
