/**
 * From a plan to what runs: tasks with their data read, configurations with their options resolved, all checked before
 * any work.
 *
 * @module
 */
import { fileOptions, isMethodPath, loadMethod } from "../../methods/mod.ts";
import {
  createTask,
  DATA_TASKS,
  LONGBENCH_PREFIX,
  RULER_TASKS,
  type Task,
  taskPaths,
  TASKS,
} from "../../tasks/mod.ts";
import { configurationKey } from "../collect.ts";
import { type Configuration, crossConfigurations } from "../engine/mod.ts";
import type { TaskRun } from "../prepare.ts";
import { LONGBENCH_PROTOCOL } from "../protocol.ts";
import { combinations, type Plan } from "./plan.ts";

/** Names that stand for several tasks. */
const GROUPS: Readonly<Record<string, readonly string[]>> = {
  "ruler/*": RULER_TASKS,
  "longbench/*": Object.keys(DATA_TASKS).filter((name) =>
    name.startsWith(LONGBENCH_PREFIX)
  ),
};

/**
 * Tasks and configurations of a plan, for any of its models.
 *
 * @throws TypeError for unknown names and options, RangeError for wrong values
 */
export async function expandPlan(plan: Plan): Promise<TaskRun[]> {
  return taskRuns(plan, await configurationsOf(plan));
}

/** Tasks of a plan, each for the same configurations. */
export function taskRuns(
  plan: Pick<Plan, "tasks" | "seeds" | "protocol">,
  configurations: readonly Configuration[],
): TaskRun[] {
  return plan.tasks.flatMap((one) =>
    (GROUPS[one.name] ?? [one.name]).flatMap((name) =>
      combinations(one.grid).flatMap((values) =>
        seededTasks(name, { ...one.options, ...values }, plan.seeds)
      )
    ).map(({ task, seed }): TaskRun => ({
      task,
      seed,
      configurations,
      protocol: {
        ...(task.name.startsWith(LONGBENCH_PREFIX) ? LONGBENCH_PROTOCOL : {}),
        ...plan.protocol,
        ...one.protocol,
      },
    }))
  );
}

/** Files and folders that a plan reads beside its models: data of tasks, files of methods. */
export function planPaths(plan: Plan): string[] {
  const all = (one: Pick<Plan["tasks"][number], "options" | "grid">) =>
    combinations(one.grid).map((values) => ({ ...one.options, ...values }));
  return [
    ...new Set([
      ...plan.tasks.flatMap(all).flatMap(taskPaths),
      ...plan.configurations.flatMap(({ method }) =>
        isMethodPath(method) ? [method] : []
      ),
      ...plan.configurations.flatMap(all).flatMap((options) =>
        Object.values(fileOptions(options))
      ),
    ]),
  ];
}

/** A task for each seed; once where it has none. */
function seededTasks(
  name: string,
  options: Record<string, unknown>,
  seeds: readonly number[],
): { task: Task; seed: number }[] {
  const definition = TASKS[name] ?? DATA_TASKS[name];
  // Ready records are what they are, whatever the seed.
  const seeded = definition !== undefined && name in TASKS &&
    options.data === undefined;
  if (!seeded) {
    if (definition !== undefined && seeds.length > 1) {
      throw new RangeError(
        `Cannot expand plan as a task of ready records must have one seed: "${name}" has ${
          seeds.join(", ")
        }`,
      );
    }
    return [{ task: createTask(name, options), seed: seeds[0]! }];
  }
  if (options.seed !== undefined) {
    throw new TypeError(
      `Cannot expand plan as seeds must stand in the plan's "seeds": task "${name}" has option seed`,
    );
  }
  return seeds.map((seed) => ({
    task: createTask(name, { ...options, seed }),
    seed,
  }));
}

async function configurationsOf(plan: Plan): Promise<Configuration[]> {
  const found = new Map<string, Configuration>();
  for (const one of plan.configurations) {
    const method = await loadMethod(one.method);
    for (const granularity of one.granularities) {
      for (const values of combinations(one.grid)) {
        const given = { ...one.options, ...values };
        const budgets = "budget" in given ? [] : one.budgets ?? plan.budgets;
        for (
          const configuration of crossConfigurations(
            [method],
            budgets ?? [],
            given,
            granularity,
          )
        ) {
          const key = configurationKey(configuration);
          if (!found.has(key)) found.set(key, configuration);
        }
      }
    }
  }
  return [...found.values()];
}
