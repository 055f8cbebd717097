// deno-lint-ignore-file no-console -- the command line prints
/**
 * What all evaluations on the command line do: open the results folder, write down the facts of the run, find out what
 * is missing, compute it with live progress.
 *
 * @module
 */
import {
  type Configuration,
  labelsOf,
  type LanguageModel,
} from "../../eval/engine/mod.ts";
import {
  type PreparedRun,
  prepareRuns,
  type TaskRun,
} from "../../eval/prepare.ts";
import {
  grantedPermissions,
  runMeta,
  sourceState,
} from "../../eval/provenance/mod.ts";
import {
  type EvalRecord,
  parseShard,
  RecordStore,
  type Shard,
  WHOLE,
} from "../../eval/records/mod.ts";
import { plainJson, runHashes, runOptions } from "../../eval/run_facts.ts";
import { predictRuns, runPrepared } from "../../eval/runner.ts";
import { formatBytes } from "../../eval/tables/mod.ts";
import { type Call, text } from "../spec.ts";
import { Interrupt } from "./_interrupt.ts";
import { type Count, EvaluationProgress } from "./_progress.ts";

/** An evaluation of one model. */
export interface Evaluation {
  /** Name for the progress line. */
  label: string;
  /** The model. */
  model: LanguageModel;
  /** Tasks with their configurations. */
  runs: readonly TaskRun[];
  /** The results folder. */
  store: RecordStore;
}

/** What an evaluation did. */
export interface Evaluated {
  /** The runs as they were found. */
  prepared: PreparedRun[];
  /** Keys of this process's records, the finished ones among them. */
  keys: Set<string>;
  /** Records that were there already. */
  finished: number;
  /** Records that were computed now. */
  made: EvalRecord[];
}

/** Opens the results folder of a call for its shard. */
export function openStore(call: Call, folder: string): Promise<RecordStore> {
  return RecordStore.open(folder, { shard: shardOf(call) });
}

/** The shard of a call. */
export function shardOf({ flags }: Call): Shard {
  const shard = text(flags, "shard");
  return shard === undefined ? { ...WHOLE } : parseShard(shard);
}

/**
 * Runs an evaluation: writes run_meta, computes what is missing.
 *
 * @param call the call, for its flags and permissions
 * @param evaluation model, runs, folder
 */
export async function evaluateCall(
  call: Call,
  evaluation: Evaluation,
): Promise<Evaluated> {
  const { model, runs, store, label } = evaluation;
  const { flags } = call;
  const prepared = await prepareRuns(model, runs, store);
  const memoryBytes = memoryLimit(call, model);
  store.appendRunMeta(runMeta({
    device: model.device,
    shard: store.shard,
    source: sourceState(),
    permissions: grantedPermissions({
      ...call.granted,
      ffi: [model.device.path],
    }),
    options: {
      flags: plainJson({ ...flags, memory: memoryBytes }),
      methodFlags: call.rest,
      ...runOptions(model, prepared),
    },
    hashes: await runHashes(model, prepared),
  }));
  const silent = flags.quiet === true || flags.json === true;
  if (!silent) announce(model, prepared, memoryBytes);
  const progress = new EvaluationProgress(label, silent);
  const counts = countsOf(prepared);
  progress.update(counts.all());
  using interrupt = new Interrupt();
  try {
    const made = await runPrepared(model, prepared, {
      store,
      memoryBytes,
      slots: flags.batch as number,
      signal: interrupt.signal,
      onProgress: (changed) => {
        for (const one of changed) counts.note(one.configuration, one);
        progress.update(counts.all());
      },
    });
    return {
      prepared,
      keys: new Set(prepared.flatMap(({ keys }) => keys)),
      finished: prepared.reduce((sum, one) => sum + one.finished, 0),
      made,
    };
  } finally {
    progress.stop();
  }
}

/** Says what is to be done and what memory it takes, before any work. */
function announce(
  model: LanguageModel,
  prepared: readonly PreparedRun[],
  memoryBytes: number,
): void {
  const missing = prepared.flatMap(({ examples }) =>
    examples.map(({ missing }) => missing.length)
  );
  if (missing.length === 0) return;
  const { leastBytes, sharedBytes } = predictRuns(model, prepared);
  console.error(
    `${missing.length} examples, ${
      missing.reduce((a, b) => a + b, 0)
    } records to compute; an example takes ${
      formatBytes(leastBytes)
    } at least, ${
      formatBytes(sharedBytes)
    } with all configurations at once, of ${formatBytes(memoryBytes)}`,
  );
}

/** Says how much was there already, unless the call is silent. */
export function tellFinished({ flags }: Call, finished: number): void {
  if (finished > 0 && !flags.json && !flags.quiet) {
    console.error(`${finished} finished records were there already`);
  }
}

/**
 * Bytes that caches and work memory may take: `--memory`, or four fifths of what is available now.
 */
export function memoryLimit({ flags }: Call, model: LanguageModel): number {
  if (flags.memory !== undefined) return flags.memory as number;
  const available = model.device.kind === "cuda"
    ? model.device.info().freeBytes
    : Deno.systemMemoryInfo().available;
  return 0.8 * available;
}

/** Counts by configuration over all tasks. */
function countsOf(prepared: readonly PreparedRun[]): {
  note(
    configuration: Configuration,
    progress: { task: string; done: number },
  ): void;
  all(): Count[];
} {
  const configurations = [
    ...new Set(prepared.flatMap(({ run }) => run.configurations)),
  ];
  const labels = labelsOf(configurations);
  const totals = new Map<Configuration, number>();
  for (
    const { configuration } of prepared.flatMap(({ examples }) =>
      examples.flatMap(({ missing }) => missing)
    )
  ) totals.set(configuration, (totals.get(configuration) ?? 0) + 1);
  const done = new Map<Configuration, Map<string, number>>();
  return {
    note(configuration, progress) {
      const tasks = done.get(configuration) ?? new Map<string, number>();
      done.set(configuration, tasks.set(progress.task, progress.done));
    },
    all: () =>
      configurations.map((configuration, i) => ({
        label: labels[i]!,
        done: [...done.get(configuration)?.values() ?? []]
          .reduce((a, b) => a + b, 0),
        total: totals.get(configuration) ?? 0,
      })).filter(({ total }) => total > 0),
  };
}
