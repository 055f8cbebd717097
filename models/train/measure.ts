/**
 * Measures the bundled model with this project's own runtime: ten tasks at four lengths, full cache, fresh seeds. Records
 * that are there already are kept, so the run can be stopped and started again, and several can share the cells.
 *
 *     deno task measure:model [--count 50] [--seed 20261128] [--tasks vt,...] [--lengths 512,...]
 *
 * Prints the table of the model card; the floors it must reach are {@linkcode FLOORS}.
 *
 * @module
 */
// deno-lint-ignore-file no-console -- a program that prints
import { parseArgs } from "@std/cli/parse-args";
import { sourceState } from "../../eval/provenance/mod.ts";
import { crossConfigurations, LanguageModel } from "../../eval/engine/mod.ts";
import {
  canonicalJson,
  readRecords,
  RecordStore,
} from "../../eval/records/mod.ts";
import { runTask } from "../../eval/runner.ts";
import { ABI_VERSION } from "../../ffi/mod.ts";
import { METHODS } from "../../methods/mod.ts";
import { needleTask, rulerTask } from "../../tasks/mod.ts";
import type { Task } from "../../tasks/types.ts";

/** Mean scores that the model must reach at 512, 1024, 2048 and 4096 tokens with the full cache. */
export const FLOORS: Readonly<Record<string, number>> = {
  needle: 0.97,
  "niah_single_1": 0.97,
  "niah_single_2": 0.97,
  "niah_single_3": 0.97,
  "niah_multikey_1": 0.97,
  "niah_multikey_2": 0.97,
  "niah_multikey_3": 0.97,
  "niah_multivalue": 0.9,
  "niah_multiquery": 0.9,
  vt: 0.8,
};

/** One cell: a task at one length, `count` examples. */
export function cellTask(
  name: string,
  { length, count, seed }: { length: number; count: number; seed: number },
): Task {
  return name === "needle"
    ? needleTask({ lengths: [length], depths: count, seed })
    : rulerTask(name, { length, count, seed });
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: ["tasks", "lengths", "count", "seed", "model", "out"],
    default: {
      tasks: Object.keys(FLOORS).join(","),
      lengths: "512,1024,2048,4096",
      count: "50",
      seed: "20261128",
      model: "models/needle-6m",
      out: "results/needle-6m",
    },
    unknown: (arg: string) => {
      throw new TypeError(
        `Cannot measure as an argument is unknown: "${arg}"; --tasks, --lengths, --count, --seed, --model and --out are known`,
      );
    },
  });
  const lengths = String(flags.lengths).split(",").map(Number);
  const out = String(flags.out);
  const seed = Number(flags.seed);
  using model = await LanguageModel.load(String(flags.model));
  using store = await RecordStore.open(out);
  const configurations = crossConfigurations(
    [METHODS.get("fullkv")!],
    [],
    {},
    "kv_head",
  );
  console.log(`| task | ${lengths.join(" | ")} | floor |`);
  console.log(`| --- |${" --- |".repeat(lengths.length + 1)}`);
  for (const name of String(flags.tasks).split(",")) {
    const cells: string[] = [];
    for (const length of lengths) {
      const task = cellTask(name, { length, count: Number(flags.count), seed });
      await runTask(model, task, configurations, {
        store,
        modelName: "needle-6m",
        commit: sourceState().commit,
        seed,
      });
      cells.push(percent(await scoreOf(out, task)));
    }
    console.log(
      `| ${name} | ${cells.join(" | ")} | ${percent(FLOORS[name] ?? 0)} |`,
    );
  }
}

/** Mean score of a cell's records in a results folder, those of this library's version. */
async function scoreOf(folder: string, task: Task): Promise<number> {
  const options = canonicalJson(task.options);
  let sum = 0, count = 0;
  for await (const record of readRecords(folder)) {
    if (record.task.name !== task.name) continue;
    if (record.build.abi !== ABI_VERSION) continue;
    if (canonicalJson(record.task.options) !== options) continue;
    sum += record.score;
    count++;
  }
  return sum / count;
}

function percent(share: number): string {
  return (100 * share).toFixed(1);
}

if (import.meta.main) await main(Deno.args);
