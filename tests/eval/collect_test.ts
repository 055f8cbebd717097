import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  byConfiguration,
  recordsOfKeys,
  scoredAs,
} from "../../eval/collect.ts";
import { recordKey } from "../../eval/records/mod.ts";
import { fullkv, snapkv } from "../../methods/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";
import { sampleFolder, sampleRecord, writeRecords } from "./sample_records.ts";

Deno.test("the records of a call are found by their keys, in the keys' order; a missing one is an error", async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "results");
  const all = sampleFolder();
  await writeRecords(path, all);
  const keys = await Promise.all(all.map(recordKey));
  const asked = [keys[7]!, keys[2]!];
  const found = await recordsOfKeys(path, new Set(asked));
  assertEquals(found.map(({ key }) => key), asked);
  await assertRejects(
    () => recordsOfKeys(path, new Set([...asked, "f".repeat(64)])),
    RangeError,
    "ffff is missing",
  );
});

Deno.test("records go to their configurations by method, options and layout", () => {
  const configuration = (
    method: typeof fullkv | typeof snapkv,
    options: Record<string, unknown>,
    granularity: "kv_head" | "query_head" = "kv_head",
  ) => ({ method, options, granularity });
  const configurations = [
    configuration(snapkv, { budget: 16 }),
    configuration(snapkv, { budget: 16 }, "query_head"),
    configuration(fullkv, {}),
  ];
  const groups = byConfiguration(sampleFolder(), configurations);
  assertEquals([...groups.values()].map((one) => one.length), [24, 0, 24]);
  assertEquals([...groups.keys()], configurations);
});

Deno.test("records are scored as the call asks, whatever they were scored by before", () => {
  const record = {
    ...sampleRecord("fullkv", null, "longbench/hotpotqa", 0, 1),
    text: "Rome\nis it",
    answers: ["Rome"],
    metric: { name: "qa_f1", variant: { firstLine: true } },
  };
  const task = (firstLine: boolean) => ({
    name: "longbench/hotpotqa",
    metric: "qa_f1",
    metricOptions: { firstLine },
  });
  assertEquals(scoredAs([record], [task(true)]), [record]);
  const [again] = scoredAs([record], [task(false)]);
  assertEquals(again!.score, 2 * (1 / 3) / (1 / 3 + 1));
  assertEquals(again!.metric.variant, { firstLine: false });
});
