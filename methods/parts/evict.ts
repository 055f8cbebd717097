/**
 * Eviction methods from their parts: a method says which rows are worth keeping (`score`) and which are never dropped
 * (`protect`); what is the same for all of them happens here, once: budgets, choice, eviction, quantisation, schedule.
 *
 * The parts are independent: score x budget policy x action x schedule. Each part that a user may exchange is an option
 * of the method; a combination that makes no sense is refused by `create`, before any work.
 *
 * @module
 */
import { defineMethod, integer } from "../define.ts";
import type {
  DecodeRecorder,
  EvictOptions,
  Granularity,
  LayerContext,
  Method,
  ModelShape,
  Observation,
  OptionSpec,
  Policy,
  Scores,
  Selection,
  Statistic,
} from "../types.ts";
import {
  type BudgetNeeds,
  type BudgetOptions,
  type Budgets,
  type Demand,
  needsOf,
  POLICY_OPTIONS,
  policyOf,
} from "./budgets.ts";
import { choose, type RandomPart } from "./choose.ts";
import { type Merge, MERGE_KIND, MERGE_OPTION } from "./merge.ts";
import { QUANT_OPTION, quantiserOf } from "./quant.ts";
import { keptFor, SCHEDULE_OPTION, scheduleOf } from "./schedule.ts";

/** Options that every eviction method has. */
export interface EvictionOptions {
  /** Tokens kept per layer and stored head on average, the protected ones included. */
  budget: number;
  /** What becomes of rows that go: `none`, or merged into kept ones by `pivot` or `weighted`. */
  merge: Merge;
  /** How kept rows are stored: `none`, or a packed format. */
  quant: string;
  /** When the method acts: `prefill`, or again during generation. */
  schedule: string;
}

/** Rows that are never dropped. */
export interface Protected {
  /** First rows. */
  first?: number;
  /** Most recent rows. */
  last?: number;
}

/** How rows are evicted in steps. */
export interface StepEviction {
  /** What is compared, lower is worse. */
  statistic: Statistic;
  /** Share of a full head that goes at once; one row where missing. */
  dropShare?: number;
  /** Rows that stay are drawn. */
  draw?: NonNullable<EvictOptions["draw"]>;
}

/** The part of an eviction method that is its own. `O` are its own options. */
export interface EvictionSpec<O> {
  /** Name on the command line and in records. */
  name: string;
  /** Name in prose. */
  title: string;
  /** One line for tables. */
  summary: string;
  /** Address of the paper. */
  paper?: string;
  /** When it acts; when prefill ends, if missing. */
  acts?: string;
  /** Differences from the paper or the authors' code. */
  differs: string;
  /** Layouts in which it is defined; both when missing. */
  granularities?: readonly Granularity[];
  /** Own options. */
  options: { [K in keyof O]: OptionSpec<O[K]> };
  /** Refuses own options that contradict each other. */
  check?(options: O & EvictionOptions): void;
  /** What prefill must record. */
  observe?(options: O): Observation;
  /** Rows that are never dropped; `budget` counts them. */
  protect?(options: O): Protected;
  /** Layers that keep everything. */
  exempt?(layer: number, options: O): boolean;
  /**
   * Worth of each row, higher is better: `[storedHeads, rows]` from row 0 on; rows at the end may be missing if they are
   * protected. Without it the most recent rows are kept.
   */
  score?(layer: LayerContext, options: O): Scores;
  /** Part of the choice that is drawn instead of taken from the top. */
  sampling?(options: O): RandomPart;
  /**
   * Whether `beforeAttention` acts with these options; the method then changes what prefill computes. Missing: it has no
   * such hook.
   */
  altersPrefill?(options: O): boolean;
  /** Acts on rows before the layer's attention runs; not called where nothing will be dropped. */
  beforeAttention?(layer: LayerContext, options: O): void;
  /** False for a method that does something else with the rows that go, so that it has no `merge` option. */
  merges?: boolean;
  /** Acts between the choice and the eviction. */
  beforeEviction?(layer: LayerContext, kept: Selection, options: O): void;
  /** See {@linkcode Method.exampleOptions}. */
  exampleOptions?(shape: ModelShape): Record<string, unknown>;
  /**
   * Records by what rows are evicted in every step, and whatever else a step must do. Without it the method has no
   * schedule `step`.
   */
  decode?(step: DecodeRecorder, options: O): StepEviction;
  /** A budget may hold the protected rows alone. Default: it must exceed them. */
  protectedAlone?: boolean;
  /** False when scores of different heads cannot be compared, so that heads cannot compete for rows. Default true. */
  comparable?: boolean;
}

/** A budget policy of the method's own, in place of the option. */
export interface FixedBudgets<O> {
  /** Makes the policy. */
  budgets(options: O & EvictionOptions, shape: ModelShape): Budgets;
}

/** A prompt longer than any budget. */
const LONG = 2 ** 24;

/** Which layer, and how much of it there is. */
type Place = Pick<LayerContext, "layer" | "length" | "storedHeads">;

/** An eviction method that is known by its budget policy. */
export function defineEviction<O>(
  spec: EvictionSpec<O> & FixedBudgets<O>,
): Method<O & EvictionOptions>;
/** An eviction method whose budget policy is an option. */
export function defineEviction<O>(
  spec: EvictionSpec<O>,
): Method<O & EvictionOptions & BudgetOptions>;
export function defineEviction<O>(
  spec: EvictionSpec<O> & Partial<FixedBudgets<O>>,
): Method<O & EvictionOptions & BudgetOptions> {
  type All = O & EvictionOptions & BudgetOptions;
  const { name, title, summary, paper, differs } = spec;
  return defineMethod<All>({
    name,
    title,
    summary,
    ...(paper === undefined ? {} : { paper }),
    kind: "evict",
    acts: spec.acts ?? "once per layer, when prefill ends",
    granularities: spec.granularities ?? ["kv_head", "query_head"],
    differs,
    ...(spec.altersPrefill ? { altersPrefill: true } : {}),
    options: {
      budget: integer(
        "Mean tokens kept per layer and stored head, protected ones included",
        { min: 1 },
      ),
      ...spec.options,
      ...(spec.budgets === undefined ? POLICY_OPTIONS : {}),
      ...(spec.merges === false ? {} : { merge: MERGE_OPTION }),
      quant: QUANT_OPTION,
      schedule: SCHEDULE_OPTION,
    } as Method<All>["options"],
    ...(spec.exampleOptions === undefined
      ? {}
      : { exampleOptions: spec.exampleOptions }),
    create: (options, shape) => createPolicy(spec, options, shape),
  });
}

function createPolicy<O>(
  spec: EvictionSpec<O> & Partial<FixedBudgets<O>>,
  options: O & EvictionOptions & BudgetOptions,
  shape: ModelShape,
): Policy {
  const { name } = spec;
  const { budget } = options;
  spec.check?.(options);
  const { first = 0, last = 0 } = spec.protect?.(options) ?? {};
  const always = first + last;
  if (budget < always || (budget === always && !spec.protectedAlone)) {
    throw new RangeError(
      `Cannot run "${name}" as budget must ${
        spec.protectedAlone ? "hold" : "exceed"
      } the ${always} tokens that are always kept: budget is ${budget}`,
    );
  }
  const quantiser = quantiserOf(name, options.quant, shape);
  const asked = spec.observe?.(options);
  const schedule = scheduleOf(name, options.schedule, {
    canStep: spec.decode !== undefined,
    ...(asked === undefined ? {} : { observation: asked }),
  });
  const observation = keptFor(schedule, asked);
  if (schedule?.kind === "step" && budget === always) {
    throw new RangeError(
      `Cannot run "${name}" with schedule "step" as budget must exceed the ${always} tokens that are always kept: budget is ${budget}`,
    );
  }
  if (schedule?.kind === "step" && quantiser !== undefined) {
    throw new RangeError(
      `Cannot run "${name}" with quant "${options.quant}" as rows that are evicted in steps must be plain: schedule is "${options.schedule}"`,
    );
  }
  if (schedule?.kind === "step" && (options.merge ?? "none") !== "none") {
    throw new RangeError(
      `Cannot run "${name}" with merge "${options.merge}" as rows that are evicted in steps are not merged: schedule is "step"`,
    );
  }
  if (spec.budgets === undefined) refuse(spec, needsOf(options.budgetPolicy));
  const budgets = spec.budgets?.(options, shape) ??
    policyOf(name, options, shape, always);
  refuse(spec, budgets);
  const base = budget - always;
  /** What the budget policy needs to know of a layer. */
  const demand = ({ layer, length, storedHeads }: Place): Demand => ({
    ...shape,
    layer,
    length,
    storedHeads,
    base,
    candidates: length - first - last,
  });
  // KVCache-Factory leaves shorter prompts alone only: here a budget as long as the prompt changes nothing, either.
  const untouched = ({ length, layer }: Place) =>
    length <= budget || (spec.exempt?.(layer, options) ?? false);

  function evict(layer: LayerContext): void {
    if (untouched(layer)) return;
    // Heads that compete may hold different numbers of rows: the layer's budget is one.
    const held = Array.from(layer.rowCounts()).reduce((sum, n) => sum + n, 0);
    if (budgets.compares && held <= layer.storedHeads * budget) return;
    const facts = demand(layer);
    const merge = MERGE_KIND[options.merge ?? "none"];
    const range = {
      ...(first ? { first } : {}),
      ...(last ? { last } : {}),
      ...(merge ? { merge } : {}),
    };
    if (base === 0) {
      layer.retain(null, range);
      return;
    }
    if (spec.score === undefined) {
      const [rows = 0] = budgets.deal(facts);
      layer.retain(null, { ...range, last: last + rows });
      return;
    }
    using stack = new DisposableStack();
    let scores = stack.use(spec.score(layer, options));
    // Protected rows are kept anyway: they take no part in the choice.
    const end = layer.length - last;
    if (end < scores.rows) {
      scores = stack.use(scores.fillLast(scores.rows - end, -Infinity));
    }
    if (first > 0) scores = stack.use(scores.fill(0, first, -Infinity));
    const counts = budgets.deal(facts, scores);
    using kept = choose(layer, scores, counts, spec.sampling?.(options));
    spec.beforeEviction?.(layer, kept, options);
    layer.retain(kept, range);
  }

  /** Rows that each head may hold in the long run: what it holds after an eviction, or would get of a long prompt. */
  function caps(step: DecodeRecorder): number[] {
    const { layer, storedHeads, rows } = step;
    const length = Math.max(...rows);
    if (Math.min(...rows) < length || length >= budget) return [...rows];
    if (budgets.compares) return rows.map(() => budget);
    const place = { layer, storedHeads, length: LONG };
    return budgets.deal(demand(place)).map((n) => always + n);
  }

  function decode(step: DecodeRecorder): void {
    if (spec.exempt?.(step.layer, options)) return;
    const { statistic, dropShare = 0, draw } = spec.decode!(step, options);
    const most = caps(step);
    const keep = most.map((n) =>
      Math.max(always + 1, n - Math.floor(n * dropShare))
    );
    step.whenRowsExceed(
      most,
      () =>
        step.evict(statistic, {
          keep,
          first,
          last,
          ...(draw === undefined ? {} : { draw }),
        }),
    );
  }

  return {
    ...(schedule?.kind === "step" ? { decode } : {}),
    ...(schedule?.kind === "every"
      ? { again: { every: schedule.tokens, act: evict } }
      : {}),
    ...(observation === undefined ? {} : { observe: observation }),
    ...(spec.altersPrefill?.(options)
      ? {
        beforeAttention(layer: LayerContext) {
          if (!untouched(layer)) spec.beforeAttention?.(layer, options);
        },
      }
      : {}),
    afterPrefill(layer) {
      evict(layer);
      quantiser?.encode(layer);
    },
    ...(quantiser === undefined ? {} : { packs: true }),
    keeps: { first, last },
    maxRows(facts) {
      if (untouched(facts)) return facts.storedHeads * facts.length;
      return facts.storedHeads * always + budgets.most(demand(facts));
    },
  };
}

function refuse<O>(spec: EvictionSpec<O>, budgets: BudgetNeeds): void {
  if (spec.score === undefined && budgets.perHead) {
    throw new RangeError(
      `Cannot run "${spec.name}" with per-head budgets as it must score rows: it keeps the most recent ones`,
    );
  }
  if (spec.comparable === false && budgets.compares) {
    throw new RangeError(
      `Cannot run "${spec.name}" with budgets that heads compete for as its scores must compare between heads: they do not`,
    );
  }
}
