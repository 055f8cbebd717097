/**
 * From records to what a report is about: sections of runs that may be compared, their data sets and configurations.
 *
 * A section holds records of one model, build and way of generating; seeds are pooled, as they only add examples. Within
 * a section every configuration must have a record for every example that any of them has: a gap is no score.
 *
 * @module
 */
import { configurationName } from "../needle.ts";
import { shortCommit } from "../provenance/mod.ts";
import { canonicalJson } from "../records/mod.ts";
import type { EvalRecord, JsonObject } from "../records/mod.ts";
import { differences, nameApart, without } from "./_names.ts";
import { countMissing, type Planned } from "./planned.ts";

/** Records of one configuration. */
export interface ReportConfiguration {
  /** Name in tables: method, budget, and the options that tell it from its neighbours. */
  name: string;
  /** Name of the method. */
  method: string;
  /** Its options, resolved. */
  options: JsonObject;
  /** What one stored head was. */
  granularity: string;
  /** Records by data set, then by example. */
  records: Map<string, Map<string, EvalRecord>>;
}

/** Runs that may be compared with each other. */
export interface Section {
  /** The model's name, and what tells the section from others of the report. */
  title: string;
  /** Name of the model. */
  model: string;
  /** Commit of the program. */
  commit: string;
  /** How tokens were produced. */
  generation: JsonObject;
  /** Names of the data sets, in the order of the records. */
  dataSets: string[];
  /** The reference first, then by method and budget. */
  configurations: ReportConfiguration[];
  /** Name of the configuration that the others are compared with. */
  reference: string;
  /** Examples left out with `partial`, as not every configuration had a record for them. */
  leftOut: number;
  /** Records that runs of this model and commit set out to write and that are not there; above 0 only with `partial`. */
  unfinished: number;
}

/** Options of {@linkcode collectSections}. */
export interface CollectOptions {
  /** Name of the configuration to compare with. Default: the uncompressed one, `fullkv`. */
  reference?: string;
  /** Whether examples without a record in some configuration are left out. Default: they are an error. */
  partial?: boolean;
  /** What the runs set out to do; records that are not there are an error unless `partial`. */
  planned?: readonly Planned[];
  /** Take only records of this commit, or of a commit that begins so. */
  commit?: string;
}

/** Fields of `generation` that belong to the example, the data set or the configuration, and so do not part sections. */
const OWN_FIELDS = [
  "maxNewTokens",
  "minNewTokens",
  "stop",
  "prompt",
  "granularity",
];

function sectionKey(record: EvalRecord): string {
  return canonicalJson({
    model: record.model.hash,
    build: record.build,
    generation: without(record.generation, OWN_FIELDS),
  });
}

/** The options of a task, and of how its prompts are made, that make it another data set. */
function dataSetOptions(record: EvalRecord): JsonObject {
  const { prompt } = record.generation;
  return {
    ...without(record.task.options, ["seed"]),
    ...(prompt === undefined ? {} : { prompt }),
  };
}

/** Order of configurations: reference, then methods as they came, budgets from small to large. */
function inOrder(
  configurations: ReportConfiguration[],
  reference: string,
): ReportConfiguration[] {
  const methods = [...new Set(configurations.map(({ method }) => method))];
  const budget = ({ options }: ReportConfiguration) =>
    typeof options.budget === "number" ? options.budget : Infinity;
  return configurations.toSorted((a, b) =>
    Number(b.name === reference) - Number(a.name === reference) ||
    methods.indexOf(a.method) - methods.indexOf(b.method) ||
    (budget(a) === budget(b) ? 0 : budget(a) - budget(b)) ||
    (a.name < b.name ? -1 : 1)
  );
}

function chooseReference(
  configurations: readonly ReportConfiguration[],
  wanted: string | undefined,
): string {
  const names = configurations.map(({ name }) => name);
  if (wanted !== undefined) {
    if (names.includes(wanted)) return wanted;
    throw new RangeError(
      `Cannot report as the reference must be one of ${
        names.join(", ")
      }: it is "${wanted}"`,
    );
  }
  const full = configurations.filter(({ method }) => method === "fullkv");
  const chosen = full.find(({ granularity }) => granularity === "kv_head") ??
    full[0];
  if (chosen !== undefined) return chosen.name;
  throw new RangeError(
    `Cannot report as the uncompressed run must stand beside the others: there is no "fullkv" among ${
      names.join(", ")
    }; run it, or name another reference`,
  );
}

/** Throws for the first gap, or takes the examples away that have one. Returns how many were taken away. */
function checkComplete(
  configurations: readonly ReportConfiguration[],
  dataSets: readonly string[],
  partial: boolean,
): number {
  let leftOut = 0;
  const gaps: string[] = [];
  for (const dataSet of dataSets) {
    const all = new Map<string, EvalRecord>();
    for (const { records } of configurations) {
      for (const [key, record] of records.get(dataSet) ?? []) {
        all.set(key, record);
      }
    }
    for (const [key, record] of all) {
      const missing = configurations.filter(({ records }) =>
        !records.get(dataSet)?.has(key)
      );
      if (missing.length === 0) continue;
      leftOut++;
      for (const { records } of configurations) {
        records.get(dataSet)?.delete(key);
      }
      gaps.push(
        `example "${record.example.id}" of ${dataSet} has none of ${
          missing.map(({ name }) => name).join(", ")
        }`,
      );
    }
  }
  if (gaps.length > 0 && !partial) {
    throw new RangeError(
      `Cannot report as every configuration must have a record of every example: ${gaps.length} examples lack some: ${
        gaps[0]
      }; finish the run, or leave such examples out on purpose (partial)`,
    );
  }
  return leftOut;
}

function collectSection(
  records: readonly EvalRecord[],
  options: CollectOptions,
): Omit<Section, "title" | "unfinished"> {
  const first = records[0]!;
  const taskKey = (record: EvalRecord) =>
    canonicalJson([record.task.name, dataSetOptions(record)]);
  const tasks = [...Map.groupBy(records, taskKey).values()];
  const taskNames = nameApart(
    tasks,
    ([one]) => one!.task.name,
    ([one]) => dataSetOptions(one!),
  );
  const ownKey = (record: EvalRecord) =>
    canonicalJson([record.method, record.generation.granularity ?? null]);
  const groups = [...Map.groupBy(records, ownKey).values()];
  const names = nameApart(
    groups,
    ([one]) => configurationName(one!),
    ([one]) => ({
      ...one!.method.options,
      source: one!.method.source ?? null,
      granularity: one!.generation.granularity ?? null,
    }),
  );
  const dataSetOf = new Map<EvalRecord, string>();
  for (const task of tasks) {
    for (const record of task) dataSetOf.set(record, taskNames.get(task)!);
  }
  const configurations = groups.map((group): ReportConfiguration => {
    const one = group[0]!;
    const byDataSet: ReportConfiguration["records"] = new Map();
    for (const record of group) {
      const dataSet = dataSetOf.get(record)!;
      const examples = byDataSet.get(dataSet) ?? new Map();
      byDataSet.set(dataSet, examples);
      const key = `${record.example.hash} ${record.seed}`;
      const twin = examples.get(key);
      if (twin !== undefined) {
        throw new RangeError(
          `Cannot report as a configuration must have one record of an example: "${
            names.get(group)
          }" has two of "${record.example.id}" that differ in ${
            differences(record.generation, [
              record.generation,
              twin.generation,
            ]).join(", ") || "their key"
          }`,
        );
      }
      examples.set(key, record);
    }
    return {
      name: names.get(group)!,
      method: one.method.name,
      options: one.method.options,
      granularity: String(one.generation.granularity ?? "kv_head"),
      records: byDataSet,
    };
  });
  const reference = chooseReference(configurations, options.reference);
  const dataSets = [...taskNames.values()];
  const leftOut = checkComplete(
    configurations,
    dataSets,
    options.partial === true,
  );
  const filled = dataSets.filter((name) =>
    (configurations[0]?.records.get(name)?.size ?? 0) > 0
  );
  if (filled.length === 0) {
    throw new RangeError(
      "Cannot report as there must be examples that every configuration has: there are 0",
    );
  }
  return {
    model: first.model.name,
    commit: first.build.commit,
    generation: without(first.generation, OWN_FIELDS),
    dataSets: filled,
    configurations: inOrder(configurations, reference),
    reference,
    leftOut,
  };
}

/**
 * Sorts records into sections.
 *
 * @param records Records, in any order.
 * @param options Reference, partial runs, commit.
 * @throws RangeError without records, without the reference, and for a missing record: one that another configuration
 * has, or one that a run set out to write.
 */
export function collectSections(
  records: readonly EvalRecord[],
  options: CollectOptions = {},
): Section[] {
  const taken = options.commit === undefined
    ? records
    : records.filter(({ build }) => build.commit.startsWith(options.commit!));
  if (taken.length === 0) {
    throw new RangeError(
      `Cannot report as there must be records: there are ${taken.length}${
        options.commit === undefined
          ? ""
          : ` of commit "${options.commit}" among ${records.length}`
      }`,
    );
  }
  const planned = (options.planned ?? []).filter(({ commit }) =>
    commit.startsWith(options.commit ?? "")
  );
  const { missing, first } = countMissing(taken, planned);
  if (first !== undefined && options.partial !== true) {
    throw new RangeError(
      `Cannot report as every record that a run set out to write must be there: ${missing} are missing, for instance "${first.method}" has ${first.there} of ${first.examples} examples of ${first.task}, seed ${first.seed}; finish the run, or report on what is there on purpose (partial)`,
    );
  }
  const groups = [...Map.groupBy(taken, sectionKey).values()];
  const titles = nameApart(
    groups,
    ([one]) => one!.model.name,
    ([one]) => ({
      ...without(one!.generation, OWN_FIELDS),
      commit: shortCommit(one!.build.commit),
      abi: one!.build.abi,
      modelHash: one!.model.hash.slice(0, 12),
    }),
  );
  return groups.map((group) => {
    const { model, build } = group[0]!;
    const own = planned.filter((plan) =>
      plan.model === model.hash && plan.commit === build.commit
    );
    return {
      title: titles.get(group)!,
      ...collectSection(group, options),
      unfinished: countMissing(taken, own).missing,
    };
  });
}
