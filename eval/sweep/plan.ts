/**
 * The plan of a sweep: models x tasks x methods x budgets x options x seeds.
 *
 * @module
 */
import * as z from "zod";
import type { Json } from "../../tasks/types.ts";
import type { Granularity } from "../../methods/types.ts";
import { PROTOCOL_SCHEMA, type ProtocolOptions } from "../protocol.ts";

const dtype = z.enum(["f32", "f16", "bf16"]);
const values = z.record(z.string(), z.json());
const grid = z.record(z.string(), z.array(z.json()).min(1));
const integers = z.array(z.int().min(1)).min(1);

/** A switch without its default, so that a missing one can be told from a given one. */
function given<T extends z.ZodType>(
  schema: z.ZodDefault<T>,
): z.ZodOptional<T> {
  const bare = (schema.unwrap() as T).optional();
  return schema.description === undefined
    ? bare
    : bare.describe(schema.description);
}

const switches = PROTOCOL_SCHEMA.shape;
const protocol = z.strictObject({
  chat: given(switches.chat),
  maxPromptTokens: given(switches.maxPromptTokens),
  truncate: given(switches.truncate),
  minNewTokens: given(switches.minNewTokens),
  beyondPositions: given(switches.beyondPositions),
});

/** A model of a plan, as written. */
export interface PlanModelInput {
  /** Hugging Face model folder. */
  path: string;
  /** `cpu`, `cuda` or `cuda:N`. Default: `cpu`. */
  device?: string | undefined;
  /** CPU threads. Default: all that the affinity mask allows. */
  threads?: number | undefined;
  /** Type of the weights in memory. Default: the file's. */
  dtype?: "f32" | "f16" | "bf16" | undefined;
  /** Type of the cache's rows. Default: the weights'. */
  cacheDtype?: "f32" | "f16" | "bf16" | undefined;
}
/** A model of a plan, resolved. */
export interface PlanModel extends PlanModelInput {
  /** `cpu`, `cuda` or `cuda:N`. */
  device: string;
}

/** A task of a plan, as written. */
export interface PlanTaskInput {
  /** Name of a task, `ruler/*` for all of RULER, or `longbench/*` for all of LongBench. */
  name: string;
  /** Options of the task. Default: none. */
  options?: { [option: string]: Json } | undefined;
  /** Options with several values each; every combination is a task. Default: none. */
  grid?: { [option: string]: Json[] } | undefined;
  /** How prompts are built. Default: as the plan says. */
  protocol?: ProtocolOptions | undefined;
}
/** A task of a plan, resolved. */
export interface PlanTask extends PlanTaskInput {
  /** Options of the task. */
  options: { [option: string]: Json };
  /** Options with several values each. */
  grid: { [option: string]: Json[] };
}

/** Configurations of a plan, as written. */
export interface PlanConfigurationInput {
  /** Name of a method, or a file that exports one. */
  method: string;
  /** Rows per layer and head. Default: as the plan says. */
  budgets?: number[] | undefined;
  /** Options of the method. Default: none. */
  options?: { [option: string]: Json } | undefined;
  /** Options with several values each; every combination is a configuration. Default: none. */
  grid?: { [option: string]: Json[] } | undefined;
  /** What one stored head is. Default: `["kv_head"]`. */
  granularities?: Granularity[] | undefined;
}
/** Configurations of a plan, resolved. */
export interface PlanConfiguration extends PlanConfigurationInput {
  /** Options of the method. */
  options: { [option: string]: Json };
  /** Options with several values each. */
  grid: { [option: string]: Json[] };
  /** What one stored head is. */
  granularities: Granularity[];
}

/** A sweep, as written. Where a name alone says it, a text may stand for an object. */
export interface PlanInput {
  /** Address of the schema, for editors. */
  $schema?: string | undefined;
  /** Models, by folder or with options. */
  models: (string | PlanModelInput)[];
  /** Tasks, by name or with options. */
  tasks: (string | PlanTaskInput)[];
  /** Methods, by name or with options. */
  configurations: (string | PlanConfigurationInput)[];
  /** Rows per layer and head, for every method that has a budget. Default: each method's own. */
  budgets?: number[] | undefined;
  /** Seeds of the examples, for every task that has a seed. Default: `[42]`. */
  seeds?: number[] | undefined;
  /** How prompts are built. Default: as `buildPrompt` does. */
  protocol?: ProtocolOptions | undefined;
  /** Results folder. Default: `results/sweep`. */
  out?: string | undefined;
}
/** A sweep, resolved. */
export interface Plan {
  /** Address of the schema, for editors. */
  $schema?: string | undefined;
  /** Models. */
  models: PlanModel[];
  /** Tasks. */
  tasks: PlanTask[];
  /** Methods. */
  configurations: PlanConfiguration[];
  /** Rows per layer and head, for every method that has a budget. */
  budgets?: number[] | undefined;
  /** Seeds of the examples, for every task that has a seed. */
  seeds: number[];
  /** How prompts are built. */
  protocol: ProtocolOptions;
  /** Results folder. */
  out: string;
}

const PLAN_MODEL_SCHEMA = z.strictObject({
  path: z.string().min(1).describe("Hugging Face model folder"),
  device: z.string().regex(/^(cpu|cuda(:\d+)?)$/, "must be cpu, cuda or cuda:N")
    .default("cpu").describe("cpu, cuda or cuda:N"),
  threads: z.int().min(1).optional().describe(
    "CPU threads; all that the affinity mask allows where missing",
  ),
  dtype: dtype.optional().describe(
    "Type of the weights in memory; the file's where missing",
  ),
  cacheDtype: dtype.optional().describe(
    "Type of the cache's rows; the weights' where missing",
  ),
}) satisfies z.ZodType<PlanModel, PlanModelInput>;

const PLAN_TASK_SCHEMA = z.strictObject({
  name: z.string().min(1).describe(
    "Name of a task, ruler/* for all of RULER, or longbench/* for all of LongBench",
  ),
  options: values.default({}).describe("Options of the task"),
  grid: grid.default({}).describe(
    "Options with several values each; every combination is a task",
  ),
  protocol: protocol.optional().describe(
    "How prompts are built, in place of the plan's",
  ),
}) satisfies z.ZodType<PlanTask, PlanTaskInput>;

const PLAN_CONFIGURATION_SCHEMA = z.strictObject({
  method: z.string().min(1).describe("Name of a method, or a file of your own"),
  budgets: integers.optional().describe(
    "Rows per layer and head, in place of the plan's",
  ),
  options: values.default({}).describe("Options of the method"),
  grid: grid.default({}).describe(
    "Options with several values each; every combination is a configuration",
  ),
  granularities: z.array(z.enum(["kv_head", "query_head"])).min(1)
    .default(["kv_head"]).describe("What one stored head is"),
}) satisfies z.ZodType<PlanConfiguration, PlanConfigurationInput>;

const PLAN_SCHEMA = z.strictObject({
  $schema: z.string().optional().describe(
    "Address of this schema, for editors",
  ),
  models: z.array(
    z.union([
      z.string().min(1).transform((path) => PLAN_MODEL_SCHEMA.parse({ path })),
      PLAN_MODEL_SCHEMA,
    ]),
  ).min(1).describe("Models, by folder or with options"),
  tasks: z.array(
    z.union([
      z.string().min(1).transform((name) => PLAN_TASK_SCHEMA.parse({ name })),
      PLAN_TASK_SCHEMA,
    ]),
  ).min(1).describe("Tasks, by name or with options"),
  configurations: z.array(
    z.union([
      z.string().min(1).transform((method) =>
        PLAN_CONFIGURATION_SCHEMA.parse({ method })
      ),
      PLAN_CONFIGURATION_SCHEMA,
    ]),
  ).min(1).describe("Methods, by name or with options"),
  budgets: integers.optional().describe(
    "Rows per layer and head, for every method that has a budget",
  ),
  seeds: z.array(z.int().min(0)).min(1).default([42]).describe(
    "Seeds of the examples, for every task that has a seed",
  ),
  protocol: protocol.default({}).describe(
    "How prompts are built",
  ),
  out: z.string().min(1).default("results/sweep").describe("Results folder"),
}) satisfies z.ZodType<Plan, PlanInput>;

/**
 * Checks a plan.
 *
 * @param value the plan, as written
 * @param where what it is called in the message
 * @throws SyntaxError that lists what does not fit
 */
export function parsePlan(value: unknown, where = "plan"): Plan {
  const parsed = PLAN_SCHEMA.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new SyntaxError(
    `Cannot read plan as it must fit the schema: ${where}: ${
      z.prettifyError(parsed.error)
    }`,
    { cause: parsed.error },
  );
}

/**
 * Reads a plan: a JSON file, or a module whose default export is a plan.
 *
 * @param path the file
 * @throws SyntaxError for JSON that does not parse and a plan that does not fit
 */
export async function readPlan(path: string): Promise<Plan> {
  if (/\.(ts|js|mts|mjs)$/.test(path)) {
    const { toFileUrl, resolve } = await import("@std/path");
    const { default: plan } = await import(toFileUrl(resolve(path)).href);
    if (plan === undefined) {
      throw new SyntaxError(
        `Cannot read plan as the module must have a default export: ${path}`,
      );
    }
    return parsePlan(plan, path);
  }
  let value: unknown;
  const bytes = Deno.readFileSync(path);
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new SyntaxError(
      `Cannot read plan as it must be JSON: ${path}: ${
        error instanceof Error ? error.message : error
      }`,
      { cause: error },
    );
  }
  return parsePlan(value, path);
}

/** The published JSON Schema of plans; `plan.schema.json` beside this module is written from it. */
export function planJsonSchema(): Json {
  return z.toJSONSchema(PLAN_SCHEMA, { io: "input" }) as Json;
}

/** All combinations of a grid's values, the first option slowest. */
export function combinations(
  grid: Readonly<Record<string, readonly Json[]>>,
): { [option: string]: Json }[] {
  let all: { [option: string]: Json }[] = [{}];
  for (const [option, values] of Object.entries(grid)) {
    all = all.flatMap((one) =>
      values.map((value) => ({ ...one, [option]: value }))
    );
  }
  return all;
}
