/**
 * An evaluation in one call, for scripts: tasks, methods and budgets on one model, with a table and with the facts from
 * which anyone gets the same numbers.
 *
 * @module
 */
import { type AnyMethod, loadMethod } from "../methods/mod.ts";
import type { Granularity } from "../methods/types.ts";
import { recordsOfKeys } from "./collect.ts";
import { crossConfigurations, LanguageModel } from "./engine/mod.ts";
import { prepareRuns, type TaskRun } from "./prepare.ts";
import { grantedPermissions, runMeta, sourceState } from "./provenance/mod.ts";
import {
  type EvalRecord,
  RecordStore,
  type RunMeta,
  WHOLE,
} from "./records/mod.ts";
import {
  collectSections,
  costTable,
  type Figure,
  type Score,
  scoreTable,
  sectionFigures,
  summarise,
} from "./report/mod.ts";
import { runHashes, runOptions } from "./run_facts.ts";
import { runPrepared } from "./runner.ts";
import { parsePlan, taskRuns } from "./sweep/mod.ts";
import { toMarkdown } from "./tables/mod.ts";

/** A task with options, or with several values of some, every combination of which is a task. */
export interface TaskRequest {
  /** Name of the task, `ruler/*` for all of RULER, `longbench/*` for all of LongBench. */
  name: string;
  /** Options of the task. */
  options?: Readonly<Record<string, unknown>>;
  /** Options with several values each. */
  grid?: Readonly<Record<string, readonly unknown[]>>;
}

/** What {@linkcode evaluate} runs. */
export interface EvaluateRequest {
  /** A model, or a Hugging Face folder to load one from. */
  model: LanguageModel | string;
  /** Tasks, by name (`needle`, `vt`, `ruler/*`, ...) or with options, as in the plan of a sweep. */
  tasks: readonly (string | TaskRequest)[];
  /** Methods, by name, by file, or as they are. FullKV is added where it is missing, as what the others are compared with. */
  methods: readonly (AnyMethod | string)[];
  /** Rows per layer and stored head, for every method that has a budget. */
  budgets?: readonly number[];
  /** Other options of the methods; each goes to those that have it. */
  options?: Readonly<Record<string, unknown>>;
  /** What one stored head is. Default `kv_head`. */
  granularity?: Granularity;
  /** Seed of the examples. Default 42. */
  seed?: number;
  /** How prompts are built: chat, truncation and the like, as in the plan of a sweep. */
  protocol?: Readonly<Record<string, unknown>>;
  /** Results folder: records are kept there, and finished ones are not computed again. Missing: nothing is written. */
  out?: string;
}

/** One configuration's result. */
export interface EvaluationRow {
  /** Method, budget, and what tells it from its neighbours. */
  name: string;
  /** Score with its interval, and the paired difference to FullKV; 0 to 100. */
  score: Score;
  /** Mean bytes of the cache after prefill. */
  residentBytes: number;
}

/** What {@linkcode evaluate} found. */
export interface Evaluation {
  /** One record per example and configuration. */
  records: EvalRecord[];
  /** One row per configuration, FullKV first. */
  rows: EvaluationRow[];
  /** Scores with intervals, and costs, as Markdown. */
  table: string;
  /** Plots of the scores; `plot.svg` of each is a picture. */
  figures: Figure[];
  /** Versions, machine, permissions, options and hashes. */
  manifest: RunMeta;
}

/** A results folder that forgets. */
class Memory {
  readonly records: EvalRecord[] = [];
  has = () => false;
  claims = () => true;
  append(...records: EvalRecord[]): Promise<void> {
    this.records.push(...records);
    return Promise.resolve();
  }
}

/**
 * Evaluates methods on tasks.
 *
 * ```ts ignore
 * const { table } = await evaluate({
 *   model: "models/needle-6m",
 *   tasks: [{ name: "needle", options: { lengths: [512], depths: 5 } }],
 *   methods: ["snapkv"],
 *   budgets: [64, 128],
 * });
 * ```
 *
 * @param request what to run
 * @returns scores, pictures and facts
 * @throws TypeError and RangeError for unknown or wrong names, options and values, before any work
 */
export async function evaluate(request: EvaluateRequest): Promise<Evaluation> {
  const methods = await Promise.all(
    request.methods.map((method) =>
      typeof method === "string" ? loadMethod(method) : method
    ),
  );
  if (!methods.some(({ name }) => name === "fullkv")) {
    methods.unshift(await loadMethod("fullkv"));
  }
  const configurations = crossConfigurations(
    methods,
    request.budgets ?? [],
    request.options ?? {},
    request.granularity ?? "kv_head",
  );
  const plan = parsePlan({
    models: ["given"],
    tasks: request.tasks,
    configurations: ["fullkv"],
    seeds: [request.seed ?? 42],
    protocol: request.protocol ?? {},
  }, "the request");
  const runs = taskRuns(plan, configurations);
  if (typeof request.model !== "string") {
    return await evaluateRuns(request.model, runs, request);
  }
  using model = await LanguageModel.load(request.model);
  return await evaluateRuns(model, runs, request);
}

async function evaluateRuns(
  model: LanguageModel,
  runs: readonly TaskRun[],
  request: EvaluateRequest,
): Promise<Evaluation> {
  const { out } = request;
  const memory = new Memory();
  using kept = out === undefined ? undefined : await RecordStore.open(out);
  const prepared = await prepareRuns(model, runs, kept ?? memory);
  const manifest = runMeta({
    device: model.device,
    shard: { ...WHOLE },
    source: sourceState(),
    permissions: grantedPermissions({
      read: [model.folder.path],
      ffi: [model.device.path],
      ...(out === undefined ? {} : { write: [out] }),
    }),
    options: runOptions(model, prepared),
    hashes: await runHashes(model, prepared),
  });
  kept?.appendRunMeta(manifest);
  await runPrepared(model, prepared, { store: kept ?? memory });
  const records = out === undefined
    ? memory.records
    : await recordsOfKeys(out, new Set(prepared.flatMap(({ keys }) => keys)));
  const summaries = collectSections(records).map((section) =>
    summarise(section)
  );
  return {
    records,
    rows: summaries.flatMap(({ configurations }) =>
      configurations.map(({ name, average, cost }) => ({
        name,
        score: average,
        residentBytes: cost.residentBytes,
      }))
    ),
    table: summaries.flatMap((summary) => [
      toMarkdown(scoreTable(summary)),
      toMarkdown(costTable(summary)),
    ]).join("\n"),
    figures: summaries.flatMap((summary) => sectionFigures(summary)),
    manifest,
  };
}
