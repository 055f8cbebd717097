/**
 * Budget policies: how many rows each layer and head keeps. Pure arithmetic on facts and, where heads compete, on scores;
 * the same for whatever method scores the rows.
 *
 * @module
 */
import { file, text } from "../define.ts";
import type { ModelShape, OptionSpec, Scores } from "../types.ts";
import { adaptiveBudgets } from "./adaptive.ts";
import { loadHeadBudgets, tableBudgets } from "./head_table.ts";
import { pyramidBudgets } from "./pyramid.ts";

/** What a budget policy knows of a layer. */
export interface Demand extends ModelShape {
  /** Index of the layer. */
  layer: number;
  /** Rows of the layer. */
  length: number;
  /** Heads of the cache. */
  storedHeads: number;
  /** Mean rows to keep per head beside the protected ones. */
  base: number;
  /** Rows per head that may be chosen: `length` without the protected ones. */
  candidates: number;
}

/** What a budget policy asks of scores. */
export interface BudgetNeeds {
  /** True when heads of one layer may get different numbers of rows. */
  perHead?: boolean;
  /** True when the numbers follow from scores of different heads. */
  compares?: boolean;
}

/** A budget policy. */
export interface Budgets extends BudgetNeeds {
  /** Rows per stored head beside the protected ones, each at most `candidates`. */
  deal(demand: Demand, scores?: Scores): number[];
  /** Most rows that all heads of the layer together may get. */
  most(demand: Demand): number;
}

/** Options that choose a budget policy. */
export interface BudgetOptions {
  /** `uniform`, `pyramid[:BETA]`, `adaptive[:FLOOR]` or `table[:BETA]`. */
  budgetPolicy: string;
  /** Head scores or budgets for `table`. */
  headFile: string;
}

/** Specs of {@linkcode BudgetOptions}. */
export const POLICY_OPTIONS: {
  [K in keyof BudgetOptions]: OptionSpec<BudgetOptions[K]>;
} = {
  budgetPolicy: text(
    "How rows are dealt out: uniform, pyramid[:BETA], adaptive[:FLOOR], table[:BETA]",
    {
      pattern: /^(uniform|(pyramid|adaptive|table)(:\d+(\.\d+)?)?)$/,
      default: "uniform",
    },
  ),
  headFile: file("JSON file of head scores or budgets, for table"),
};

/** The same for every layer and head. */
export const UNIFORM: Budgets = {
  deal: (demand) => equal(demand, demand.base),
  most: ({ storedHeads, base, candidates }) =>
    storedHeads * Math.min(base, candidates),
};

/** Linearly fewer from the first layer to the last. */
export function pyramid(beta: number, exact: boolean): Budgets {
  const rows = ({ base, candidates, layers, layer, length }: Demand) =>
    pyramidBudgets({ base, candidates, layers, beta, exact }, length)[layer]!;
  return {
    deal: (demand) => equal(demand, rows(demand)),
    most: (demand) => demand.storedHeads * rows(demand),
  };
}

/**
 * The heads of a layer compete for its rows with their scores.
 * @param floor share of the budget that every head gets
 * @param concentrate weigh each head's scores by how much of them its best ones hold
 */
export function adaptive(floor: number, concentrate: boolean): Budgets {
  return {
    perHead: true,
    compares: true,
    deal({ storedHeads, base, candidates }, scores) {
      using weighed = concentrate ? scores!.concentrate(base) : undefined;
      const counts = (weighed ?? scores!).share(storedHeads * base);
      return adaptiveBudgets(counts, base, floor, candidates);
    },
    // Each head's share is rounded by at most half a row.
    most: ({ storedHeads, base, candidates }) =>
      Math.min(storedHeads * candidates, Math.ceil(storedHeads * (base + 0.5))),
  };
}

/** Budgets from a table of rows per layer and query head. */
export function table(budgets: readonly number[]): Budgets {
  const rows = (demand: Demand) => tableBudgets(budgets, demand);
  return {
    perHead: true,
    deal: rows,
    most: (demand) => rows(demand).reduce((sum, n) => sum + n, 0),
  };
}

function equal({ storedHeads, candidates }: Demand, rows: number): number[] {
  return Array<number>(storedHeads).fill(Math.min(rows, candidates));
}

/** What the policy of that name asks of scores. */
export function needsOf(budgetPolicy: string): BudgetNeeds {
  const [kind] = budgetPolicy.split(":");
  return {
    perHead: kind === "adaptive" || kind === "table",
    compares: kind === "adaptive",
  };
}

/**
 * The policy that options name.
 * @param protectedRows rows per head beside those that the policy deals out
 * @throws {RangeError} when the value is out of range, or a file is given that the policy does not read
 */
export function policyOf(
  method: string,
  options: BudgetOptions & { budget: number },
  shape: ModelShape,
  protectedRows: number,
): Budgets {
  const [kind, given] = options.budgetPolicy.split(":");
  const number = (standard: number) =>
    given === undefined ? standard : Number(given);
  if (kind !== "table" && options.headFile !== "") {
    throw new RangeError(
      `Cannot run "${method}" with a head file as budgetPolicy must be table: it is "${options.budgetPolicy}"`,
    );
  }
  switch (kind) {
    case "pyramid":
      return pyramid(inRange(method, "BETA", number(20), 1, Infinity), true);
    case "adaptive":
      return adaptive(inRange(method, "FLOOR", number(0.2), 0, 1), true);
    case "table":
      return table(loadHeadBudgets(
        method,
        options.headFile,
        options.budget - protectedRows,
        inRange(method, "BETA", number(1.01), 1, Infinity),
        shape,
      ));
    default:
      return UNIFORM;
  }
}

function inRange(
  method: string,
  name: string,
  value: number,
  least: number,
  most: number,
): number {
  if (value >= least && value <= most) return value;
  throw new RangeError(
    `Cannot run "${method}" as ${name} of budgetPolicy must be from ${least} to ${most}: it is ${value}`,
  );
}
