/**
 * Records as evaluations write them, for tests of what reads them.
 *
 * @module
 */
import { recordKey, RecordStore } from "../../eval/records/mod.ts";
import type { EvalRecord, JsonObject } from "../../eval/records/mod.ts";

const HASH = "0".repeat(64);

/** A hash, as it seems, of a short text. */
function hashOf(text: string): string {
  return new TextEncoder().encode(text).toHex().padEnd(64, "0");
}

/** A record of example `index` of a data set. */
export function sampleRecord(
  method: string,
  budget: number | null,
  task: string,
  index: number,
  score: number,
  rest: { generation?: JsonObject; commit?: string; options?: JsonObject } = {},
): EvalRecord {
  const full = budget === null;
  return {
    schema: 1,
    key: HASH,
    model: { name: "tiny", hash: HASH },
    example: { id: `${task}-${index}`, hash: hashOf(`${task}-${index}`) },
    method: {
      name: method,
      options: { ...(full ? {} : { budget }), ...rest.options },
    },
    generation: {
      device: "cpu",
      granularity: "kv_head",
      maxNewTokens: 8,
      ...rest.generation,
    },
    seed: 1,
    build: { commit: rest.commit ?? "abc", abi: 3 },
    task: { name: task, options: { seed: 1, size: 4 } },
    promptTokens: 100,
    tokens: [1, 2],
    text: "",
    answers: [""],
    metric: { name: "m", variant: {} },
    score,
    cache: {
      rows: full ? [100, 100] : [[budget, 8], budget],
      promisedBytes: full ? 1000 : budget,
      residentBytes: full ? 1000 : budget,
      peakBytes: 2000,
    },
    timing: { prefillMs: 10, decodeMs: 4 },
    stop: "end_token",
    meta: { length: 100 * (1 + index % 2), depth: 50 * (index % 3) },
  };
}

/** FullKV with 1 everywhere, SnapKV 32 as good but once, SnapKV 16 with nothing; two data sets of 12 examples. */
export function sampleFolder(): EvalRecord[] {
  return ["one", "two"].flatMap((task) =>
    Array.from({ length: 12 }, (_, i) => [
      sampleRecord("snapkv", 32, task, i, i === 0 ? 0 : 1),
      sampleRecord("snapkv", 16, task, i, 0),
      sampleRecord("fullkv", null, task, i, 1),
    ]).flat()
  );
}

/** Writes records into a results folder, with their keys. */
export async function writeRecords(
  path: string,
  records: readonly EvalRecord[],
): Promise<void> {
  using store = await RecordStore.open(path);
  for (const record of records) {
    await store.append({ ...record, key: await recordKey(record) });
  }
}
