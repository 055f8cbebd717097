/**
 * The published tables: all methods at several budgets on RULER, and what each of them costs and keeps.
 *
 * @module
 */
import { type AnyMethod, METHODS, resolveOptions } from "../methods/mod.ts";
import {
  type BenchmarkRow,
  benchmarkRows,
  RULER_RULES,
  rulerTable,
} from "./benchmark_tables.ts";
import { byConfiguration } from "./collect.ts";
import { type Configuration, labelsOf } from "./engine/mod.ts";
import { type EvalRecord, expandRows } from "./records/mod.ts";
import { bootstrapMean, mean } from "./statistics/mod.ts";
import {
  type Column,
  formatBytes,
  type IntervalCell,
  type Table,
} from "./tables/mod.ts";

/** Budgets of the tables, rows per layer and head. */
export const TABLE_BUDGETS: readonly number[] = [32, 64, 128, 256];

/** Options in which the tables differ from the methods' own defaults; each goes to the methods that have it. */
export const TABLE_OPTIONS: Readonly<Record<string, number>> = {
  // The default of 32 is as large as the smallest budget; KVCache-Factory's runners use 8.
  observationWindow: 8,
  // The votes go to a needle's key, and the bundled tokenizer needs 16 tokens for the sentence with the value at its end.
  poolWidth: 31,
};

/** Bits of methods that pack all rows and have no budget. */
const TABLE_BITS: readonly number[] = [2, 4];

/**
 * Methods without a budget or bits that are shown more than once. MInference's own sizes take in all of 2048 tokens, so
 * each pattern is also shown at sizes that leave most of them out.
 */
const TABLE_VARIANTS: Readonly<Record<string, Record<string, unknown>[]>> = {
  minference: [
    {},
    { pattern: "vertical_and_slash", firstSize: 64, secondSize: 128 },
    { pattern: "stream_llm", firstSize: 64, secondSize: 512 },
    { pattern: "block_sparse", firstSize: 8 },
  ],
  minicache: [{}, { compat: "paper" }],
};

/** What a method is shown with: its options apart from those of {@linkcode TABLE_OPTIONS}. */
function variantsOf(method: AnyMethod): Record<string, unknown>[] {
  if (!("budget" in method.options)) {
    return "bits" in method.options
      ? TABLE_BITS.map((bits) => ({ bits }))
      : TABLE_VARIANTS[method.name] ?? [{}];
  }
  // Merging of what is dropped goes with any method that evicts; it is shown with one of them.
  const merges = method.name === "snapkv" ? ["none", "pivot", "weighted"] : [];
  const budgets = TABLE_BUDGETS.map((budget) => ({ budget }));
  return merges.length === 0
    ? budgets
    : merges.flatMap((merge) => budgets.map((one) => ({ ...one, merge })));
}

/**
 * Every method at every budget; those that pack rows at two widths, and the others without a budget once.
 *
 * @param headFile head scores, for methods that need a table over heads
 * @param methods the methods; default: all
 */
export function tableConfigurations(
  headFile: string,
  methods: Iterable<AnyMethod> = METHODS.values(),
): Configuration[] {
  return [...methods].flatMap((method) => {
    const own: Record<string, unknown> = Object.fromEntries(
      Object.entries(TABLE_OPTIONS).filter(([name]) => name in method.options),
    );
    if (method.name === "headkv") own.headFile = headFile;
    return variantsOf(method).map((variant): Configuration => ({
      method,
      options: resolveOptions(method, { ...own, ...variant }),
      granularity: method.granularities[0]!,
    }));
  });
}

/** The RULER table: one row for each configuration, intervals in whole percent. */
export function rulerBudgetTable(
  records: readonly EvalRecord[],
  configurations: readonly Configuration[],
): Table<BenchmarkRow> {
  const table = rulerTable(
    benchmarkRows(records, configurations, RULER_RULES),
  );
  return {
    ...table,
    columns: table.columns
      // Times of a batch of many configurations say nothing of any one of them.
      .filter(({ title }) => title !== "ms/step")
      .map((column) => column.format ? column : { ...column, digits: 0 }),
  };
}

/** What one configuration costs and keeps. */
export interface MethodRow {
  /** Name of the configuration. */
  configuration: string;
  /** Mean over layers and heads of the rows kept, at each length. */
  rows: number[];
  /** Promised, resident and peak bytes at each length. */
  bytes: { promised: number; resident: number; peak: number }[];
  /** Needle score, percent. */
  needle: IntervalCell;
  /** Mean over the RULER tasks, percent. */
  ruler: IntervalCell;
}

/** Records that {@linkcode methodTable} is made of. */
export interface MethodRecords {
  /** Records of runs with one configuration alone, by prompt length: rows, bytes, peaks. */
  alone: ReadonlyMap<number, readonly EvalRecord[]>;
  /** Needle records. */
  needle: readonly EvalRecord[];
  /** RULER records. */
  ruler: readonly EvalRecord[];
}

/** Rows, bytes and accuracy of every configuration. */
export function methodTable(
  { alone, needle, ruler }: MethodRecords,
  configurations: readonly Configuration[],
): Table<MethodRow> {
  const labels = labelsOf(configurations);
  const lengths = [...alone.keys()];
  const single = lengths.map((length) =>
    byConfiguration(alone.get(length)!, configurations)
  );
  const needles = byConfiguration(needle, configurations);
  const rulers = byConfiguration(ruler, configurations);
  const rows = configurations.map((configuration, i): MethodRow => ({
    configuration: labels[i]!,
    rows: single.map((groups) =>
      mean(
        groups.get(configuration)!.flatMap(({ cache }) =>
          expandRows(cache.rows, 1).map(mean)
        ),
      )
    ),
    bytes: single.map((groups) => {
      const caches = groups.get(configuration)!.map(({ cache }) => cache);
      return {
        promised: mean(caches.map((one) => one.promisedBytes)),
        resident: mean(caches.map((one) => one.residentBytes)),
        peak: Math.max(...caches.map((one) => one.peakBytes)),
      };
    }),
    needle: scoreOf([needles.get(configuration)!]),
    ruler: scoreOf([
      ...Map.groupBy(rulers.get(configuration)!, RULER_RULES.column).values(),
    ]),
  }));
  const columns = lengths.flatMap((length, i): Column<MethodRow>[] => {
    const size = (
      title: string,
      of: (row: MethodRow["bytes"][number]) => number,
    ): Column<MethodRow> => ({
      title: `${title} at ${length}`,
      cell: (row) => of(row.bytes[i]!),
      format: formatBytes,
    });
    return [
      { title: `rows at ${length}`, cell: (row) => row.rows[i]!, digits: 0 },
      size("promised", ({ promised }) => promised),
      size("resident", ({ resident }) => resident),
      size("peak", ({ peak }) => peak),
    ];
  });
  return {
    columns: [
      { title: "configuration", cell: (row) => row.configuration },
      { title: "needle", cell: (row) => row.needle, digits: 0 },
      { title: "RULER", cell: (row) => row.ruler, digits: 0 },
      ...columns,
    ],
    rows,
    notes: [
      "Scores in percent with 95 % bootstrap intervals. Rows: mean over layers and heads after prefill. Promised: what rows and formats need by arithmetic; resident: what the page pool holds; both after prefill. Peak: the pool's largest size from the prompt's start to the answer's end, the configuration running alone, compressed layer by layer where the method allows.",
    ],
  };
}

function scoreOf(groups: readonly (readonly EvalRecord[])[]): IntervalCell {
  const { mean, low, high } = bootstrapMean(
    groups.map((group) => group.map(({ score }) => 100 * score)),
  );
  return { value: mean, low, high };
}
