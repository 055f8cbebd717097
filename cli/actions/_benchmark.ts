/**
 * What the benchmark commands have in common: running tasks into a results folder, and the records of the call.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { recordsOfKeys, scoredAs } from "../../eval/collect.ts";
import type { Configuration } from "../../eval/engine/mod.ts";
import type { EvalRecord } from "../../eval/records/mod.ts";
import { type Table, toCsv, toMarkdown } from "../../eval/tables/mod.ts";
import type { Task } from "../../tasks/mod.ts";
import { protocolOf } from "../commands/_shared.ts";
import { type Call, text } from "../spec.ts";
import { evaluateCall, openStore } from "./_evaluation.ts";
import { openModel } from "./_runtime.ts";

/** What a benchmark came to. */
export interface Benchmark {
  /** The model's name. */
  model: string;
  /** All records of the call, those finished before among them. */
  records: EvalRecord[];
  /** Records that were there before. */
  finished: number;
}

/** Runs tasks into the folder `--out`. */
export async function runBenchmark(
  call: Call,
  tasks: readonly Task[],
  configurations: readonly Configuration[],
): Promise<Benchmark> {
  const { flags } = call;
  const out = text(flags, "out")!;
  const modelPath = text(flags, "model")!;
  const seed = (flags.seed as number | undefined) ?? 42;
  const protocol = protocolOf(flags);
  using model = await openModel(flags);
  using store = await openStore(call, out);
  const { keys, finished } = await evaluateCall(call, {
    label: "all",
    model,
    runs: tasks.map((task) => ({ task, configurations, seed, protocol })),
    store,
  });
  return {
    model: basename(modelPath),
    records: scoredAs(await recordsOfKeys(out, keys), tasks),
    finished,
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
