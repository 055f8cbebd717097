/**
 * The plan of a sweep: models x tasks x methods x budgets x options x seeds.
 *
 * @module
 */
import * as z from "zod";
import type { Json } from "../../tasks/types.ts";
import { PROTOCOL_SCHEMA } from "../protocol.ts";

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

/** A model of a plan. */
export const PLAN_MODEL_SCHEMA = z.strictObject({
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
});

/** A task of a plan. */
export const PLAN_TASK_SCHEMA = z.strictObject({
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
});

/** Methods of a plan. */
export const PLAN_CONFIGURATION_SCHEMA = z.strictObject({
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
});

/** A sweep. Where a name alone says it, a text may stand for an object. */
export const PLAN_SCHEMA = z.strictObject({
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
});

/** A plan, as written. */
export type PlanInput = z.input<typeof PLAN_SCHEMA>;
/** A plan, resolved. */
export type Plan = z.output<typeof PLAN_SCHEMA>;
/** A model of a plan, resolved. */
export type PlanModel = z.output<typeof PLAN_MODEL_SCHEMA>;

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
