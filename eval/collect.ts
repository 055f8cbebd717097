/**
 * From a results folder to the records of one call.
 *
 * @module
 */
import type { Task } from "../tasks/types.ts";
import type { Configuration } from "./engine/mod.ts";
import { createMetric } from "./metrics/mod.ts";
import { canonicalJson, type EvalRecord, readRecords } from "./records/mod.ts";

/**
 * The records of given keys in the order of the keys.
 *
 * @param folder Results folder.
 * @param keys Keys, for instance as `RunTaskOptions.keys` collects them.
 * @throws {RangeError} A record is missing.
 */
export async function recordsOfKeys(
  folder: string,
  keys: ReadonlySet<string>,
): Promise<EvalRecord[]> {
  const found = new Map<string, EvalRecord>();
  for await (const record of readRecords(folder)) {
    if (keys.has(record.key)) found.set(record.key, record);
  }
  return [...keys].map((key) => {
    const record = found.get(key);
    if (record !== undefined) return record;
    throw new RangeError(
      `Cannot make a table as every record must be there: ${key} is missing in "${folder}"`,
    );
  });
}

/**
 * Records scored as their tasks score now. How an answer is scored is no part of a record's key, since the answer does not
 * depend on it; so a record may have been written under another variant of the metric.
 *
 * @param records records of the tasks
 * @param tasks the tasks; those of one name score alike
 */
export function scoredAs(
  records: readonly EvalRecord[],
  tasks: readonly Pick<Task, "name" | "metric" | "metricOptions">[],
): EvalRecord[] {
  const metrics = new Map(
    tasks.map(({ name, metric, metricOptions }) => [
      name,
      createMetric(metric, metricOptions),
    ]),
  );
  return records.map((record) => {
    const { name, variant, score } = metrics.get(record.task.name)!;
    const metric = { name, variant };
    return canonicalJson(metric) === canonicalJson(record.metric) ? record : {
      ...record,
      metric,
      score: score(record.text, record.answers),
    };
  });
}

/** What tells configurations apart: method, options and layout. */
export function configurationKey(
  { method, options, granularity }: {
    method: { name: string };
    options: Readonly<Record<string, unknown>>;
    granularity: unknown;
  },
): string {
  return canonicalJson([method.name, { ...options }, granularity]);
}

/** {@linkcode configurationKey} of a record. */
function configurationKeyOf(record: EvalRecord): string {
  return configurationKey({
    method: record.method,
    options: record.method.options,
    granularity: record.generation.granularity,
  });
}

/** Records by configuration, in the configurations' order; configurations without records have an empty list. */
export function byConfiguration(
  records: readonly EvalRecord[],
  configurations: readonly Configuration[],
): Map<Configuration, EvalRecord[]> {
  const groups = Map.groupBy(records, configurationKeyOf);
  return new Map(
    configurations.map((one) => [one, groups.get(configurationKey(one)) ?? []]),
  );
}
