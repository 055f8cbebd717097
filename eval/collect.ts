/**
 * From a results folder to the records of one call.
 *
 * @module
 */
import type { Configuration } from "./engine/mod.ts";
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
export function configurationKeyOf(record: EvalRecord): string {
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
