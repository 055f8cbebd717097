/**
 * Runs tasks on a model with several configurations: one prefill per example for all of them, one record per example
 * and configuration, finished records are never computed again.
 *
 * @module
 */
import {
  answerAll,
  type Generation,
  type Job,
  type LanguageModel,
  leastBytes,
  type ScheduleOptions,
  sharedBytes,
} from "./engine/mod.ts";
import type { Configuration } from "./engine/mod.ts";
import type { Task } from "../tasks/types.ts";
import { createMetric } from "./metrics/mod.ts";
import {
  newlineToken,
  type PreparedExample,
  type PreparedRun,
  prepareRun,
  type RunNames,
  type TaskRun,
} from "./prepare.ts";
import {
  compactRows,
  type EvalRecord,
  RECORD_SCHEMA_VERSION,
  type RecordStore,
} from "./records/mod.ts";

/** What has been done of a run. */
export interface Progress {
  /** Name of the task. */
  task: string;
  /** The configuration. */
  configuration: Configuration;
  /** Records that were computed now. */
  done: number;
  /** Records that this call computes. */
  total: number;
}

/** Options of {@linkcode runPrepared}. */
export interface RunOptions extends ScheduleOptions {
  /** Where records go. */
  store: Pick<RecordStore, "append">;
  /** Called when records are written: all counts that changed. */
  onProgress?: (progress: readonly Progress[]) => void;
}

/** One example as the scheduler sees it. */
interface ExampleJob extends Job {
  prepared: PreparedExample;
  score: (generation: Generation, index: number) => EvalRecord;
  progress: Progress[];
}

/**
 * Computes the missing records and writes each as soon as its answer is complete.
 *
 * @param model the model that the runs were prepared for
 * @param runs what {@linkcode prepareRun} found
 * @param options where records go, slots, memory
 * @returns the records
 * @throws RangeError before any work when an example cannot fit in memory
 */
export async function runPrepared(
  model: LanguageModel,
  runs: readonly PreparedRun[],
  options: RunOptions,
): Promise<EvalRecord[]> {
  const jobs = runs.flatMap((run) => jobsOf(model, run));
  checkMemory(model, jobs, options.memoryBytes ?? Infinity);
  const made: EvalRecord[] = [];
  for await (const answers of answerAll(model, jobs, options)) {
    const records = answers.map(({ job, index, generation }) =>
      job.score(generation, index)
    );
    await options.store.append(...records);
    made.push(...records);
    const changed = answers.map(({ job, index }) => job.progress[index]!);
    for (const one of changed) one.done++;
    options.onProgress?.([...new Set(changed)]);
  }
  return made;
}

/** Bytes that runs need, by the arithmetic of the ledger. */
export interface Prediction {
  /** For the most demanding example at least: one configuration at a time. */
  leastBytes: number;
  /** For the most demanding example with all its missing configurations at once. */
  sharedBytes: number;
}

/** Predicts the memory of what is missing; zeroes when nothing is. */
export function predictRuns(
  model: LanguageModel,
  runs: readonly PreparedRun[],
): Prediction {
  const jobs = runs.flatMap((run) => jobsOf(model, run));
  return {
    leastBytes: Math.max(0, ...jobs.map((job) => leastBytes(model, job))),
    sharedBytes: Math.max(0, ...jobs.map((job) => sharedBytes(model, job))),
  };
}

function checkMemory(
  model: LanguageModel,
  jobs: readonly ExampleJob[],
  limit: number,
): void {
  if (limit === Infinity) return;
  for (const job of jobs) {
    const need = leastBytes(model, job);
    if (need <= limit) continue;
    const mebibytes = (bytes: number): string =>
      `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new RangeError(
      `Cannot run as every example must fit in ${
        mebibytes(limit)
      }: example "${job.prepared.example.id}" of ${job.prompt.length} tokens needs ${
        mebibytes(need)
      }`,
    );
  }
}

function jobsOf(model: LanguageModel, prepared: PreparedRun): ExampleJob[] {
  const { run, examples } = prepared;
  const score = scorer(model, run);
  const counts = new Map(
    run.configurations.map((configuration): [Configuration, Progress] => [
      configuration,
      { task: run.task.name, configuration, done: 0, total: 0 },
    ]),
  );
  return examples.map((one): ExampleJob => {
    const progress = one.missing.map(({ configuration }) => {
      const count = counts.get(configuration)!;
      count.total++;
      return count;
    });
    return {
      prepared: one,
      prompt: one.prompt.ids,
      configurations: one.missing.map(({ configuration }) => configuration),
      options: {
        maxNewTokens: one.example.maxNewTokens,
        minNewTokens: Number(
          one.missing[0]!.parts.generation.minNewTokens ?? 0,
        ),
        stop: one.stop,
      },
      score: (generation, index) => score(one, index, generation),
      progress,
    };
  });
}

/** Makes records of a task out of answers. */
function scorer(
  model: LanguageModel,
  { task }: TaskRun,
): (
  prepared: PreparedExample,
  index: number,
  generation: Generation,
) => EvalRecord {
  const metric = createMetric(task.metric, task.metricOptions);
  const further = (task.scores ?? []).map((one) => ({
    ...one,
    ...createMetric(one.metric),
  }));
  const newline = newlineToken(model);
  return ({ example, prompt, missing }, index, generation) => {
    const { parts, key } = missing[index]!;
    const text = model.folder.tokenizer!.decode(generation.tokens, {
      skipSpecialTokens: true,
    });
    const { timing } = generation;
    return {
      schema: RECORD_SCHEMA_VERSION,
      key,
      ...parts,
      task: { name: task.name, options: task.options },
      promptTokens: generation.promptTokens,
      tokens: generation.tokens,
      text,
      answers: example.answers,
      metric: { name: metric.name, variant: metric.variant },
      score: metric.score(text, example.answers),
      scores: {
        exact: text.trim() === (example.answers[0] ?? "") ? 1 : 0,
        ...Object.fromEntries(
          further.map((
            { name, score, answers },
          ) => [name, score(text, answers(example))]),
        ),
      },
      cache: {
        ...generation.cache,
        rows: compactRows(generation.cache.rows),
      },
      timing: {
        prefillMs: timing.prefillMs,
        compressMs: timing.compressMs,
        firstTokenMs: timing.firstTokenMs,
        decodeMs: timing.decodeMs,
        sharedPrefill: timing.sharedPrefill,
        batch: timing.batch,
      },
      stop: stopReason(generation, newline),
      meta: {
        ...example.meta,
        fullTokens: prompt.fullTokens,
        truncated: prompt.truncated,
      },
    };
  };
}

function stopReason(
  generation: Generation,
  newline: number | undefined,
): EvalRecord["stop"] {
  if (generation.stopReason === "length") return "max_new_tokens";
  return generation.stopToken === newline ? "newline" : "end_token";
}

/** Options of {@linkcode runTask}. */
export interface RunTaskOptions
  extends RunNames, Pick<TaskRun, "seed" | "protocol">, ScheduleOptions {
  /** Where records go. */
  store: RecordStore;
  /** Is given the keys of all records of the call, those finished before among them. */
  keys?: Set<string>;
  /** Called when records are written. */
  onProgress?: (done: number, total: number) => void;
}

/**
 * Runs every example of a task that is not finished.
 *
 * @returns the records of this task's examples and configurations that were computed now
 */
export async function runTask(
  model: LanguageModel,
  task: Task,
  configurations: readonly Configuration[],
  options: RunTaskOptions,
): Promise<EvalRecord[]> {
  const { store, onProgress, protocol, seed } = options;
  const run = await prepareRun(
    model,
    { task, configurations, seed, ...(protocol ? { protocol } : {}) },
    options,
    store,
  );
  for (const key of run.keys) options.keys?.add(key);
  const total = run.examples.reduce((sum, one) => sum + one.missing.length, 0);
  let done = 0;
  return await runPrepared(model, [run], {
    store,
    ...(options.slots === undefined ? {} : { slots: options.slots }),
    ...(options.memoryBytes === undefined
      ? {}
      : { memoryBytes: options.memoryBytes }),
    ...(options.signal ? { signal: options.signal } : {}),
    onProgress: (changed) => {
      done += changed.length;
      onProgress?.(Math.min(done, total), total);
    },
  });
}
