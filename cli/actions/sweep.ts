// deno-lint-ignore-file no-console -- the command line prints
import { basename, fromFileUrl, resolve } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { recordsOfKeys } from "../../eval/collect.ts";
import { labelsOf, type LanguageModel } from "../../eval/engine/mod.ts";
import {
  type PreparedRun,
  prepareRuns,
  type TaskRun,
} from "../../eval/prepare.ts";
import {
  claims,
  type EvalRecord,
  formatShard,
  readRecords,
  type RecordStore,
} from "../../eval/records/mod.ts";
import {
  collectSections,
  scoreTable,
  summarise,
} from "../../eval/report/mod.ts";
import { predictRuns } from "../../eval/runner.ts";
import {
  expandPlan,
  type Plan,
  type PlanModel,
  slurmScript,
} from "../../eval/sweep/mod.ts";
import { toTerminal } from "../../eval/tables/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import {
  evaluateCall,
  memoryLimit,
  openStore,
  shardOf,
  tellFinished,
} from "./_evaluation.ts";
import { bytes, openModel, printColumns, printJson } from "./_runtime.ts";
import { jobArguments, planOf, sweepGrants } from "./_sweep_plan.ts";

const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

/** `kvf sweep`. */
export async function sweepAction(call: Call): Promise<number> {
  const { flags } = call;
  if (flags.submit === true && flags.slurm === undefined) {
    throw new UsageError(
      "Cannot submit as --slurm must name the job's file: it is missing",
    );
  }
  const plan = await planOf(call);
  const asked = sweepGrants(plan, call);
  if (flags.printGrants === true) {
    console.log(JSON.stringify(asked));
    return 0;
  }
  const granted = { ...call.granted, ...asked };
  if (flags.slurm !== undefined) return await writeJob(call, plan);
  const runs = await expandPlan(plan);
  if (flags.dryRun === true) return await dryRun(call, plan, runs);
  const records: EvalRecord[] = [];
  let made = 0, finished = 0;
  using store = await openStore(call, plan.out);
  for (const one of plan.models) {
    using model = await openPlanModel(call, one);
    const evaluated = await evaluateCall({ ...call, granted }, {
      label: "all",
      model,
      runs,
      store,
    });
    made += evaluated.made.length;
    finished += evaluated.finished;
    records.push(...await recordsOfKeys(plan.out, evaluated.keys));
  }
  tell(call, plan, { runs, records, made, finished });
  return 0;
}

function openPlanModel(
  { flags }: Call,
  { path, device, threads, dtype, cacheDtype }: PlanModel,
): Promise<LanguageModel> {
  const { json, quiet } = flags;
  return openModel({
    ...{ model: path, device, json, quiet },
    ...{ threads, dtype, cacheDtype },
  });
}

/** Says what a sweep did; the whole table where this process did all of it. */
function tell(
  call: Call,
  plan: Plan,
  { runs, records, made, finished }: {
    runs: readonly TaskRun[];
    records: readonly EvalRecord[];
    made: number;
    finished: number;
  },
): void {
  const shard = shardOf(call);
  if (call.flags.json) {
    printJson({
      out: plan.out,
      shard: formatShard(shard),
      records: records.length,
      made,
      finished,
    });
    return;
  }
  tellFinished(call, finished);
  const full = runs[0]?.configurations.some(({ method }) =>
    method.name === "fullkv"
  );
  if (shard.count === 1 && full && records.length > 0) {
    for (const section of collectSections(records)) {
      const summary = summarise(section);
      console.log(`${section.title}\n${toTerminal(scoreTable(summary))}`);
    }
  }
  console.log(
    `${made} records computed in shard ${
      formatShard(shard)
    }; tables and pictures: kvf report ${plan.out}${
      full ? "" : " --reference NAME (the sweep has no fullkv)"
    }`,
  );
}

/** What a folder has, without opening it for writing. */
async function peek(
  call: Call,
  folder: string,
): Promise<Pick<RecordStore, "has" | "claims">> {
  const keys = new Set<string>();
  try {
    Deno.statSync(folder);
    for await (const { key } of readRecords(folder)) keys.add(key);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const shard = shardOf(call);
  return {
    has: (key) => keys.has(key),
    claims: (hash) => claims(shard, hash),
  };
}

/** Tells what a sweep would do: examples, records, memory. */
async function dryRun(
  call: Call,
  plan: Plan,
  runs: readonly TaskRun[],
): Promise<number> {
  const store = await peek(call, plan.out);
  const rows: Row[] = [];
  const models: { [name: string]: ModelPrediction } = {};
  for (const one of plan.models) {
    using model = await openPlanModel(call, one);
    const prepared = await prepareRuns(model, runs, store);
    rows.push(...prepared.map((run) => rowOf(one.path, model, run)));
    models[one.path] = {
      ...predictRuns(model, prepared),
      limitBytes: memoryLimit(call, model),
    };
  }
  const labels = labelsOf(runs[0]!.configurations);
  if (call.flags.json) {
    printJson({ out: plan.out, configurations: labels, tasks: rows, models });
  } else printPrediction(labels, rows, models);
  return Object.values(models).every((one) => one.leastBytes <= one.limitBytes)
    ? 0
    : 1;
}

interface ModelPrediction {
  leastBytes: number;
  sharedBytes: number;
  limitBytes: number;
}

interface Row {
  model: string;
  task: string;
  seed: number;
  examples: number;
  claimed: number;
  records: number;
  finished: number;
  longestPrompt: number;
  leastBytes: number;
  sharedBytes: number;
}

function rowOf(path: string, model: LanguageModel, run: PreparedRun): Row {
  const { task, seed, configurations } = run.run;
  return {
    model: basename(resolve(path)),
    task: task.name,
    seed,
    examples: run.total,
    claimed: run.claimed,
    records: run.claimed * configurations.length,
    finished: run.finished,
    longestPrompt: Math.max(
      0,
      ...run.examples.map(({ prompt }) => prompt.ids.length),
    ),
    ...predictRuns(model, [run]),
  };
}

function printPrediction(
  labels: readonly string[],
  rows: readonly Row[],
  models: Record<string, ModelPrediction>,
): void {
  console.log(`${labels.length} configurations: ${labels.join(", ")}`);
  printColumns([
    [
      ...["model", "task", "seed", "examples", "of this shard", "records"],
      ...["finished", "longest prompt", "memory, least", "memory, shared"],
    ],
    ...rows.map((row) => [
      row.model,
      row.task,
      String(row.seed),
      String(row.examples),
      String(row.claimed),
      String(row.records),
      String(row.finished),
      String(row.longestPrompt),
      bytes(row.leastBytes),
      bytes(row.sharedBytes),
    ]),
  ]);
  for (const [path, one] of Object.entries(models)) {
    console.log(
      `${path}: ${bytes(one.limitBytes)} for caches and activations; ${
        one.sharedBytes <= one.limitBytes
          ? "every example fits with all its configurations at once"
          : one.leastBytes <= one.limitBytes
          ? "large examples are taken in parts"
          : `TOO LITTLE: an example needs ${bytes(one.leastBytes)}`
      }`,
    );
  }
}

/** Writes the array job, and submits it when asked to. */
async function writeJob(call: Call, plan: Plan): Promise<number> {
  const { flags } = call;
  if (flags.shard !== undefined) {
    throw new UsageError(
      "Cannot write job as its tasks must be the shards: --shard is given",
    );
  }
  const path = text(flags, "slurm")!;
  Deno.mkdirSync(plan.out, { recursive: true });
  Deno.writeTextFileSync(
    path,
    slurmScript({
      name: "kvf-sweep",
      shards: flags.shards as number,
      cwd: Deno.cwd(),
      config: CONFIG,
      args: jobArguments(call, plan),
      logs: resolve(plan.out),
      options: flags.sbatch as string[],
    }),
  );
  const submitted = flags.submit === true ? await submit(path) : null;
  if (flags.json) {
    printJson({ out: plan.out, job: path, submitted });
    return 0;
  }
  console.log(`job: ${path}`);
  console.log(submitted ?? `submit it with: sbatch ${path}`);
  return 0;
}

/** Submits a job; resolves to what sbatch said. */
async function submit(path: string): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command("sbatch", {
    env: CHILD_ENV,
    args: [path],
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  if (code === 0) return decoder.decode(stdout).trimEnd();
  throw new UsageError(
    `Cannot submit job as sbatch must take it: ${
      decoder.decode(stderr).trimEnd()
    }`,
  );
}
