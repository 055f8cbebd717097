/**
 * What the benchmark commands have in common: running tasks into a results folder, and the records of the call.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { recordsOfKeys } from "../../eval/collect.ts";
import type { Configuration } from "../../eval/engine/mod.ts";
import { type EvalRecord, RecordStore } from "../../eval/records/mod.ts";
import { runTask } from "../../eval/runner.ts";
import { type Table, toCsv, toMarkdown } from "../../eval/tables/mod.ts";
import type { Task } from "../../tasks/mod.ts";
import { protocolOf } from "../commands/_shared.ts";
import { type Call, text } from "../spec.ts";
import { commit } from "./_project.ts";
import { openModel, progressBar } from "./_runtime.ts";

/** What a benchmark came to. */
export interface Benchmark {
  /** The model's name. */
  model: string;
  /** All records of the call, those finished before among them. */
  records: EvalRecord[];
  /** Records that were there before. */
  finished: number;
}

/** Runs tasks one after the other into the folder `--out`. */
export async function runBenchmark(
  { flags }: Call,
  tasks: readonly Task[],
  configurations: readonly Configuration[],
): Promise<Benchmark> {
  const out = text(flags, "out")!;
  const modelName = basename(text(flags, "model")!);
  using model = await openModel(flags);
  using store = await RecordStore.open(out);
  const before = store.size;
  const bar = progressBar(
    "examples",
    flags.quiet === true || flags.json === true,
  );
  const keys = new Set<string>();
  const total = tasks.reduce((sum, { count }) => sum + count, 0);
  let made = 0;
  try {
    let base = 0;
    for (const task of tasks) {
      made += (await runTask(model, task, configurations, {
        store,
        modelName,
        commit: commit(),
        seed: (flags.seed as number | undefined) ?? 42,
        protocol: protocolOf(flags),
        keys,
        onProgress: (done) => bar.set(base + done, total),
      })).length;
      base += task.count;
    }
  } finally {
    bar.stop();
  }
  const records = await recordsOfKeys(out, keys);
  return {
    model: modelName,
    records,
    finished: Math.min(before, records.length - made),
  };
}

/** Writes a table as Markdown and CSV; returns the paths. */
export function writeTable<Row>(
  folder: string,
  name: string,
  table: Table<Row>,
): { markdown: string; csv: string } {
  const paths = {
    markdown: join(folder, `${name}.md`),
    csv: join(folder, `${name}.csv`),
  };
  Deno.writeTextFileSync(paths.markdown, toMarkdown(table));
  Deno.writeTextFileSync(paths.csv, toCsv(table));
  return paths;
}
