/**
 * The plan of a `kvf sweep` call: from a file, or from the flags.
 *
 * @module
 */
import { resolve } from "@std/path";
import {
  parsePlan,
  type Plan,
  planPaths,
  readPlan,
} from "../../eval/sweep/mod.ts";
import { loadMethods, methodOptions } from "./_runtime.ts";
import { protocolOf } from "../commands/_shared.ts";
import {
  type Call,
  type Flags,
  type Grants,
  text,
  UsageError,
} from "../spec.ts";

/** Flags that say what runs, which a plan does in their place. */
const PLANNED = [
  "model",
  "threads",
  "dtype",
  "cacheDtype",
  "tasks",
  "lengths",
  "limit",
  "data",
  "method",
  "budget",
  "granularity",
  "seeds",
  "chat",
  "maxPromptTokens",
  "truncate",
  "minNewTokens",
  "beyondPositions",
];

/** The plan of a call; `--out` goes before the plan's. */
export async function planOf({ args, flags, rest }: Call): Promise<Plan> {
  const [path] = args;
  const out = text(flags, "out");
  if (path === undefined) return await flagPlan(flags, rest);
  const clash = [
    ...PLANNED.filter((name) => flags[name] !== undefined),
    ...(flags.device === "cpu" ? [] : ["device"]),
  ].map((name) => `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`);
  if (clash.length > 0 || rest.length > 0) {
    throw new UsageError(
      `Cannot sweep as a plan must say what runs: ${
        [...clash, ...rest].join(" ")
      } must stand in "${path}"`,
    );
  }
  const plan = await readPlan(path);
  return { ...plan, ...(out === undefined ? {} : { out }) };
}

async function flagPlan(flags: Flags, rest: string[]): Promise<Plan> {
  const model = text(flags, "model");
  if (model === undefined) {
    throw new UsageError(
      "Cannot sweep as a plan or --model must be given: there is neither",
    );
  }
  const methods = text(flags, "method") ?? "fullkv,snapkv,streamingllm";
  const options = methodOptions(await loadMethods(methods), rest);
  const { threads, dtype, cacheDtype } = flags;
  const names = (list: string): string[] =>
    list.split(",").filter((name) => name !== "");
  return parsePlan(
    present({
      models: names(model).map((path) =>
        present({ path, device: flags.device, threads, dtype, cacheDtype })
      ),
      tasks: names(text(flags, "tasks") ?? "needle").map((name) =>
        flagTask(name, flags)
      ),
      configurations: await Promise.all(
        names(methods).map(async (method) => {
          const [{ options: own } = { options: {} }] = await loadMethods(
            method,
          );
          return {
            method,
            options: Object.fromEntries(
              Object.entries(options).filter(([name]) => name in own),
            ),
            granularities: names(text(flags, "granularity") ?? "kv_head"),
          };
        }),
      ),
      budgets: flags.budget ??
        (flags.method === undefined ? [64, 128, 256] : undefined),
      seeds: flags.seeds,
      protocol: present({ ...protocolOf(flags) }),
      out: flags.out,
    }),
    "the flags",
  );
}

/** A task of the flags; each family has its own names for lengths and counts. */
function flagTask(name: string, flags: Flags): unknown {
  const lengths = (flags.lengths as number[] | undefined) ?? [1024, 2048];
  const limit = (flags.limit as number | undefined) ?? 10;
  if (name === "needle") return { name, options: { lengths, depths: limit } };
  if (name.startsWith("longbench/")) {
    if (flags.data === undefined) {
      throw new UsageError(
        `Cannot sweep as --data must name LongBench's data: task "${name}" needs it`,
      );
    }
    return { name, options: { data: flags.data, limit } };
  }
  return { name, options: { count: limit }, grid: { length: lengths } };
}

/** The fields that are there. */
function present(value: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(value).filter(([, field]) => field !== undefined),
  );
}

/** What a sweep may touch beside what its flags alone say. */
export function sweepGrants(plan: Plan, { args, flags }: Call): Grants {
  const kinds = new Set(plan.models.map(({ device }) => device.split(":")[0]!));
  if (kinds.size > 1) {
    throw new UsageError(
      `Cannot sweep as all models must be on one kind of device: they are on ${
        [...kinds].join(" and ")
      }`,
    );
  }
  const slurm = text(flags, "slurm");
  const shared = {
    read: [
      ...args,
      ...plan.models.map(({ path }) => path),
      ...planPaths(plan),
    ],
    device: [...kinds][0]!,
  };
  if (slurm !== undefined) {
    return { ...shared, write: [slurm, plan.out] };
  }
  return {
    ...shared,
    write: flags.dryRun === true ? [] : [plan.out],
    ...(flags.dryRun === true ? { read: [...shared.read, plan.out] } : {}),
    native: true,
  };
}

/** The words of a call without those that only choose how it is run, for the jobs of an array. */
export function jobArguments(call: Call, plan: Plan): string[] {
  const { args, flags, rest } = call;
  const words: string[] = ["sweep", ...args.map((path) => resolve(path))];
  const flag = (name: string, value: unknown): void => {
    if (value === undefined || value === false) return;
    const word = `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;
    words.push(...(value === true ? [word] : [word, String(value)]));
  };
  for (const name of PLANNED) flag(name, flags[name]);
  if (flags.device !== "cpu") flag("device", flags.device);
  flag("out", resolve(plan.out));
  if (flags.batch !== 64) flag("batch", flags.batch);
  flag("memory", flags.memory);
  return [...words, ...rest];
}
