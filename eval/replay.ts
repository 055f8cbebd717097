/**
 * Doing a record again: the same tokens, or what differs.
 *
 * How a record was made stands in the `run_meta` of its folder: the task's recipe with the paths of the user's files, the
 * prompt protocol, the model's folder. Everything is held against the record before it is run.
 *
 * @module
 */
import * as z from "zod";
import { loadMethod, resolveOptions } from "../methods/mod.ts";
import { ABI_VERSION } from "../ffi/mod.ts";
import { createTask, type Json, type TextCodec } from "../tasks/mod.ts";
import { generate, type LanguageModel } from "./engine/mod.ts";
import type { ProtocolOptions } from "./protocol.ts";
import { type PreparedExample, prepareRun } from "./prepare.ts";
import {
  canonicalJson,
  type EvalRecord,
  exampleHash,
  type RunMeta,
} from "./records/mod.ts";

const object = z.record(z.string(), z.json());

/** What of `run_meta` tells how a record was made. */
const MADE_SCHEMA = z.object({
  model: z.string(),
  runs: z.array(z.object({
    task: z.string(),
    options: object,
    recipe: z.object({ name: z.string(), options: object }),
    seed: z.int(),
    protocol: object,
    configurations: z.array(z.object({
      method: z.string(),
      file: z.string().nullable(),
    })),
  })),
});

/** How a record was made. */
export interface Origin {
  /** The model's folder. */
  model: string;
  /** What makes the task again. */
  recipe: { name: string; options: { [name: string]: Json } };
  /** How prompts were built. */
  protocol: ProtocolOptions;
  /** Name of the method, or the file of a method of the user's own. */
  method: string;
}

/**
 * Finds out how a record may have been made: several starts can have run its task over different examples.
 *
 * @param record the record
 * @param starts all starts that its folder knows of
 * @throws RangeError when none of them made it
 */
export function originsOf(
  record: EvalRecord,
  starts: readonly RunMeta[],
): Origin[] {
  const wanted = canonicalJson(record.task.options);
  const found = new Map<string, Origin>();
  for (const { options, hashes } of starts) {
    const made = MADE_SCHEMA.safeParse(options);
    if (!made.success || hashes.model !== record.model.hash) continue;
    for (const run of made.data.runs) {
      const own = run.configurations.find(({ method }) =>
        method === record.method.name
      );
      if (
        own === undefined || run.task !== record.task.name ||
        run.seed !== record.seed || canonicalJson(run.options) !== wanted
      ) continue;
      const origin = {
        model: made.data.model,
        recipe: run.recipe,
        protocol: run.protocol as ProtocolOptions,
        method: own.file ?? own.method,
      };
      found.set(JSON.stringify(origin), origin);
    }
  }
  if (found.size > 0) return [...found.values()];
  throw new RangeError(
    `Cannot replay as the folder's run_meta must tell how the record was made: none of ${starts.length} starts made ${
      record.key.slice(0, 12)
    } ("${record.task.name}", ${record.method.name})`,
  );
}

/** What came of a replay. */
export interface Replay {
  /** Whether the very same tokens came out. */
  same: boolean;
  /** The tokens that came out; missing when it could not be run. */
  tokens?: number[];
  /** Index of the first token that differs. */
  firstDifference?: number;
  /** What is not as it was, each with the record's value and today's. */
  differences: { what: string; record: Json; now: Json }[];
}

/**
 * Does a record again, alone: a prefill and a batch of its own.
 *
 * @param model the model, opened with the record's device and types
 * @param record the record
 * @param origins how it may have been made, at least one; the first that has its example counts
 * @param commit the commit of this program
 */
export async function replayRecord(
  model: LanguageModel,
  record: EvalRecord,
  origins: readonly Origin[],
  commit: string,
): Promise<Replay> {
  const differences: Replay["differences"] = [];
  const compare = (what: string, before: Json, now: Json): void => {
    if (canonicalJson(before) === canonicalJson(now)) return;
    differences.push({ what, record: before, now });
  };
  compare("commit", record.build.commit, commit);
  compare("abi", record.build.abi, ABI_VERSION);
  compare("model", record.model.hash, model.folder.hash());
  let found: Found | undefined;
  for (const origin of origins) {
    const other = await find(model, record, origin);
    if (other?.hash === record.example.hash) {
      found = other;
      break;
    }
    found ??= other;
  }
  if (found === undefined) {
    compare("example", record.example.id, null);
    return { same: false, differences };
  }
  const { example, prompt, stop, missing } = found.prepared;
  const { parts, configuration } = missing[0]!;
  compare("task options", record.task.options, found.taskOptions);
  compare("example", record.example.hash, found.hash);
  compare(
    "method source",
    record.method.source ?? null,
    parts.method.source ?? null,
  );
  compare(
    "method files",
    record.method.files ?? null,
    parts.method.files ?? null,
  );
  for (const [name, value] of Object.entries(parts.generation)) {
    compare(`generation.${name}`, record.generation[name] ?? null, value);
  }
  compare("prompt tokens", record.promptTokens, prompt.ids.length);
  const [generation] = await generate(model, prompt.ids, [configuration], {
    maxNewTokens: example.maxNewTokens,
    minNewTokens: Number(parts.generation.minNewTokens ?? 0),
    stop,
  });
  const { tokens } = generation!;
  const first = Array.from(
    { length: Math.max(tokens.length, record.tokens.length) },
    (_, i) => i,
  ).find((i) => tokens[i] !== record.tokens[i]);
  return {
    same: first === undefined,
    tokens,
    ...(first === undefined ? {} : { firstDifference: first }),
    differences,
  };
}

/** The example of a record, made again. */
interface Found {
  prepared: PreparedExample;
  hash: string;
  taskOptions: { [name: string]: Json };
}

async function find(
  model: LanguageModel,
  record: EvalRecord,
  origin: Origin,
): Promise<Found | undefined> {
  const task = createTask(origin.recipe.name, origin.recipe.options);
  const method = await loadMethod(origin.method);
  const { granularity } = record.generation;
  const run = {
    task: {
      ...task,
      *examples(codec: TextCodec) {
        for (const example of task.examples(codec)) {
          if (example.id === record.example.id) yield example;
        }
      },
    },
    configurations: [{
      method,
      options: resolveOptions(method, record.method.options),
      granularity: granularity === "query_head" ? granularity : "kv_head",
    }] as const,
    seed: record.seed,
    protocol: origin.protocol,
  };
  const { examples: [prepared] } = await prepareRun(
    model,
    run,
    { modelName: record.model.name, commit: record.build.commit },
    { has: () => false, claims: () => true },
  );
  if (prepared === undefined) return undefined;
  return {
    prepared,
    hash: await exampleHash(task, prepared.example),
    taskOptions: task.options,
  };
}
