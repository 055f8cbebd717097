// deno-lint-ignore-file no-console -- the command line prints
import {
  benchmarkRows,
  LONGBENCH_RULES,
  longbenchBinTable,
  longbenchTable,
  narrow,
} from "../../eval/benchmark_tables.ts";
import { type Table, toTerminal } from "../../eval/tables/mod.ts";
import {
  LONGBENCH_DATA_SETS,
  type LongBenchOptions,
  longbenchTask,
} from "../../tasks/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { runBenchmark, writeTable } from "./_benchmark.ts";
import { configurationsOf, printJson } from "./_runtime.ts";

/** The data sets that KVCache-Factory reports are those in English and code. */
function dataSetsOf(value: string, e: boolean): string[] {
  const all = [...LONGBENCH_DATA_SETS].filter(([, set]) => !e || set.extended);
  if (value === "all") return all.map(([name]) => name);
  if (value === "english") {
    return all.filter(([, set]) => set.language !== "zh").map(([name]) => name);
  }
  const names = value.split(",").filter((name) => name !== "");
  if (names.length > 0) return [...new Set(names)];
  throw new UsageError(
    "Cannot run as --datasets must name a data set: it is empty",
  );
}

/** `kvf eval longbench`. */
export async function evalLongbenchAction(call: Call): Promise<number> {
  const { flags } = call;
  const e = flags.e === true;
  const configurations = await configurationsOf(call);
  const options = Object.fromEntries(
    Object.entries({
      data: flags.data,
      prompts: flags.prompts,
      lengths: flags.answerLengths,
      e,
      limit: flags.limit,
      sample: flags.sample,
      seed: flags.seed,
      maxNewTokens: flags.maxNewTokens,
      stopAtNewline: flags.stopAtNewline,
      firstLine: flags.firstLine,
      similarity: flags.similarity,
      rougeDepth: flags.rougeDepth,
    }).filter(([, value]) => value !== undefined),
  ) as unknown as LongBenchOptions;
  // All files are read before the model, so that broken data costs no time.
  const tasks = dataSetsOf(text(flags, "datasets")!, e).map((name) =>
    longbenchTask(name, options)
  );
  const { records, finished } = await runBenchmark(call, tasks, configurations);
  const out = text(flags, "out")!;
  const rows = benchmarkRows(records, configurations, LONGBENCH_RULES);
  const table = longbenchTable(rows);
  const name = e ? "longbench_e" : "longbench";
  const files: Record<string, { markdown: string; csv: string }> = {
    [name]: writeTable(out, name, table),
  };
  let bins: Table<unknown> | undefined;
  if (e) {
    const table = longbenchBinTable(records, configurations);
    files.bins = writeTable(out, "longbench_e_bins", table);
    bins = table as Table<unknown>;
  }
  if (flags.json) {
    printJson({
      rows: rows.map((row) => ({
        ...row,
        cells: Object.fromEntries(row.cells),
      })),
      ...(bins ? { bins: bins.rows } : {}),
      files,
    });
    return 0;
  }
  if (finished > 0) {
    console.error(`${finished} finished records were there already`);
  }
  console.log(toTerminal(narrow(table)));
  if (bins) console.log(toTerminal(narrow(bins)));
  if (text(flags, "prompts") === undefined) {
    console.log(
      "Prompts are worded in our own way: scores compare with each other, not with published ones (--prompts dataset2prompt.json).",
    );
  }
  for (const { markdown, csv } of Object.values(files)) {
    console.log(`table: ${markdown} and ${csv}`);
  }
  return 0;
}
