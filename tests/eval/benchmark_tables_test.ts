import { assert, assertEquals } from "@std/assert";
import {
  benchmarkRows,
  LONGBENCH_RULES,
  longbenchBinTable,
  longbenchTable,
  RULER_RULES,
  rulerSummaryTable,
  rulerTable,
} from "../../eval/benchmark_tables.ts";
import { type Configuration, labelsOf } from "../../eval/engine/mod.ts";
import {
  methodTable,
  rulerBudgetTable,
  TABLE_BUDGETS,
  tableConfigurations,
} from "../../eval/method_tables.ts";
import type { EvalRecord } from "../../eval/records/mod.ts";
import { type Table, toCsv } from "../../eval/tables/mod.ts";
import { fullkv, METHODS, snapkv } from "../../methods/mod.ts";
import { sampleRecord } from "./sample_records.ts";

const FULL: Configuration = {
  method: fullkv,
  options: {},
  granularity: "kv_head",
};
const SNAP: Configuration = {
  method: snapkv,
  options: { budget: 32 },
  granularity: "kv_head",
};

/** Records of both configurations: the full cache gets every answer right, SnapKV the first `right` of them. */
function records(
  task: string,
  count: number,
  right: number,
  meta: (index: number) => EvalRecord["meta"],
): EvalRecord[] {
  return Array.from({ length: count }, (_, i) => [
    { ...sampleRecord("fullkv", null, task, i, 1), meta: meta(i) },
    {
      ...sampleRecord("snapkv", 32, task, i, i < right ? 1 : 0),
      meta: meta(i),
    },
  ]).flat();
}

/** Cells of a table's row by title. */
function cells<Row>(table: Table<Row>, row: number): Record<string, unknown> {
  return Object.fromEntries(
    table.columns.map(({ title, cell }) => {
      const value = cell(table.rows[row]!);
      return [
        title,
        typeof value === "object" && value !== null ? value.value : value,
      ];
    }),
  );
}

const dataset = (name: string) => (i: number) => ({
  dataset: name,
  length: 3000 + 3000 * i,
});

Deno.test("LongBench's table has both averages, and marks what may be chance", () => {
  const all = [
    ...records("longbench/hotpotqa", 20, 0, dataset("hotpotqa")),
    ...records("longbench/2wikimqa", 20, 10, dataset("2wikimqa")),
    ...records("longbench/lcc", 20, 19, dataset("lcc")),
  ];
  const rows = benchmarkRows(all, [FULL, SNAP], LONGBENCH_RULES);
  const table = longbenchTable(rows);
  const { cache: _cache, "ms/step": _ms, ...full } = cells(table, 0);
  assertEquals(full, {
    configuration: "FullKV",
    hotpotqa: 100,
    "2wikimqa": 100,
    lcc: 100,
    "mean of data sets": 100,
    "mean of categories": 100,
    examples: 60,
  });
  const snap = cells(table, 1);
  assertEquals([snap.hotpotqa, snap["2wikimqa"], snap.lcc], [0, 50, 95]);
  assertEquals(snap["mean of data sets"], 145 / 3);
  // Two data sets are of one category: (0 + 50) / 2 and 95.
  assertEquals(snap["mean of categories"], (25 + 95) / 2);
  const [, row] = rows;
  assertEquals(
    [...row!.cells.values()].map(({ noise }) => noise),
    [false, false, true],
  );
  assertEquals(row!.mean.noise, false);
  const { low, high } = row!.cells.get("2wikimqa")!;
  assert(low > 20 && low < 40 && high > 60 && high < 80, `${low} ${high}`);
  assertEquals(rows[0]!.cells.get("lcc")!.noise, undefined);
});

Deno.test("LongBench-E's bins go by the length of the record", () => {
  const all = records("longbench/lcc_e", 3, 1, dataset("lcc_e"));
  const table = longbenchBinTable(all, [FULL, SNAP]);
  assertEquals(cells(table, 1), {
    configuration: "SnapKV 32",
    "data set": "lcc_e",
    "0-4k": 100,
    "4-8k": 0,
    "8k+": 0,
  });
  assertEquals(
    toCsv(table).split("\r\n")[1],
    "FullKV,lcc_e,100,100,100",
  );
});

Deno.test("RULER's tables: tasks, means over lengths, effective length", () => {
  const at = (length: number, right: number) =>
    ["vt", "cwe"].flatMap((task) =>
      records(task, 10, right, () => ({ length }))
    );
  const rows = (right: number) =>
    benchmarkRows(at(1024, right), [FULL, SNAP], RULER_RULES);
  const first = cells(rulerTable(rows(9)), 1);
  assertEquals([first.vt, first.cwe, first.mean], [90, 90, 90]);
  const summary = rulerSummaryTable(
    new Map([[1024, rows(9)], [2048, rows(5)]]),
  );
  const snap = cells(summary, 1);
  assertEquals([snap["1024"], snap["2048"], snap.mean], [90, 50, 70]);
  assertEquals(snap["mean, long weighs more"], (90 + 2 * 50) / 3);
  assertEquals(snap["effective length"], 1024);
  assertEquals(cells(summary, 0)["effective length"], 2048);
});

Deno.test("the published tables hold every method at every budget", () => {
  const configurations = tableConfigurations("heads.json");
  const names = configurations.map(({ method }) => method.name);
  assertEquals(new Set(names), new Set(METHODS.keys()));
  for (const [name, method] of METHODS) {
    const options = configurations.filter((one) => one.method.name === name)
      .map((one) => one.options);
    const values = (option: string) => [
      ...new Set(options.map((one) => one[option])),
    ];
    if ("budget" in method.options) {
      assertEquals(values("budget"), [...TABLE_BUDGETS]);
    } else if ("bits" in method.options) assertEquals(values("bits"), [2, 4]);
    else if (name === "minference") assertEquals(values("pattern").length, 3);
    else if (name === "minicache") {
      assertEquals(values("compat"), ["reference", "paper"]);
    } else assertEquals(options.length, 1);
    if (name === "snapkv") {
      assertEquals(values("merge"), ["none", "pivot", "weighted"]);
    }
  }
  const labels = labelsOf(configurations);
  assertEquals(new Set(labels).size, labels.length);
});

Deno.test("the methods table takes rows and bytes from runs of one configuration, accuracy from the others", () => {
  const alone = (length: number, scale: number) =>
    records("niah_single_2", 1, 0, () => ({ length })).map((one) => ({
      ...one,
      cache: { ...one.cache, peakBytes: scale * one.cache.peakBytes },
    }));
  const ruler = [
    ...records("vt", 4, 1, () => ({ length: 2048 })),
    ...records("cwe", 4, 2, () => ({ length: 2048 })),
  ];
  const table = methodTable({
    alone: new Map([[2048, alone(2048, 1)], [4096, alone(4096, 2)]]),
    needle: records("needle", 4, 3, () => ({ length: 2048, depth: 0 })),
    ruler,
  }, [FULL, SNAP]);
  const snap = cells(table, 1);
  assertEquals([snap.needle, snap.RULER], [75, 37.5]);
  // Two layers: one with heads of 32 and 8 rows, one with 32 in each.
  assertEquals(snap["rows at 2048"], (20 + 32) / 2);
  assertEquals([snap["promised at 2048"], snap["resident at 4096"]], [32, 32]);
  assertEquals([snap["peak at 2048"], snap["peak at 4096"]], [2000, 4000]);
  const published = rulerBudgetTable(ruler, [FULL, SNAP]);
  assertEquals(cells(published, 1).mean, 37.5);
  assert(!published.columns.some(({ title }) => title === "ms/step"));
});
