// deno-lint-ignore-file no-console -- the command line prints
import {
  type BenchmarkRow,
  benchmarkRows,
  narrow,
  RULER_RULES,
  rulerSummaryTable,
  rulerTable,
} from "../../eval/benchmark_tables.ts";
import { toTerminal } from "../../eval/tables/mod.ts";
import {
  RULER_TASKS,
  type RulerOptions,
  rulerTask,
  type Task,
} from "../../tasks/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { runBenchmark, writeTable } from "./_benchmark.ts";
import { configurationsOf, printJson } from "./_runtime.ts";

function tasksOf({ flags }: Call): Task[] {
  const value = text(flags, "tasks")!;
  const names = value === "all"
    ? RULER_TASKS
    : [...new Set(value.split(",").filter((name) => name !== ""))];
  if (names.length === 0) {
    throw new UsageError("Cannot run as --tasks must name a task: it is empty");
  }
  const data = text(flags, "data");
  return (flags.lengths as number[]).flatMap((length) =>
    names.map((name) =>
      rulerTask(
        name,
        Object.fromEntries(
          Object.entries({
            length,
            count: flags.limit,
            data,
            // Ready records have no seed.
            seed: data === undefined ? flags.seed : undefined,
            maxNewTokens: flags.maxNewTokens,
            wording: flags.wording,
            haystack: flags.haystack,
            squad: flags.squad,
            hotpot: flags.hotpot,
            chains: flags.chains,
            hops: flags.hops,
            alpha: flags.alpha,
            clean: flags.clean,
            shot: flags.shot === false ? false : undefined,
          }).filter(([, value]) => value !== undefined),
        ) as RulerOptions,
      )
    )
  );
}

/** `kvf eval ruler`. */
export async function evalRulerAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  const tasks = tasksOf(call);
  const { records, finished } = await runBenchmark(call, tasks, configurations);
  const out = text(flags, "out")!;
  const byLength = new Map<number, BenchmarkRow[]>(
    [...Map.groupBy(records, ({ meta }) => meta.length as number)].map((
      [length, members],
    ) => [length, benchmarkRows(members, configurations, RULER_RULES)]),
  );
  const tables = [...byLength].map(([length, rows]) => ({
    name: `ruler_${length}`,
    table: rulerTable(rows),
  }));
  const summary = rulerSummaryTable(byLength);
  const files = [
    ...tables.map(({ name, table }) => writeTable(out, name, table)),
    writeTable(out, "ruler", summary),
  ];
  if (flags.json) {
    printJson({
      lengths: Object.fromEntries(
        [...byLength].map(([length, rows]) => [
          length,
          rows.map((row) => ({
            ...row,
            cells: Object.fromEntries(row.cells),
          })),
        ]),
      ),
      summary: summary.rows,
      files,
    });
    return 0;
  }
  if (finished > 0) {
    console.error(`${finished} finished records were there already`);
  }
  for (const { name, table } of tables) {
    console.log(`${name}\n${toTerminal(narrow(table))}`);
  }
  console.log(toTerminal(narrow(summary)));
  for (const { markdown, csv } of files) {
    console.log(`table: ${markdown} and ${csv}`);
  }
  return 0;
}
