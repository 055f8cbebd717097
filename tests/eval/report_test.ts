import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  collectSections,
  longTable,
  plannedOf,
  reportMarkdown,
  sectionFigures,
  summarise,
} from "../../eval/report/mod.ts";
import type { RunMeta } from "../../eval/records/mod.ts";
import { toCsv } from "../../eval/tables/mod.ts";
import {
  sampleFolder as folder,
  sampleRecord as record,
} from "./sample_records.ts";

Deno.test("collectSections() sets the reference first and budgets in order", () => {
  const [section, ...more] = collectSections(folder());
  assertEquals(more, []);
  assertEquals(section!.title, "tiny");
  assertEquals(section!.reference, "fullkv");
  assertEquals(
    section!.configurations.map(({ name }) => name),
    ["fullkv", "snapkv 16", "snapkv 32"],
  );
  assertEquals(section!.dataSets, ["one", "two"]);
});

Deno.test("collectSections() fails for a missing record and names it", () => {
  const records = folder();
  records.splice(4, 1);
  assertThrows(
    () => collectSections(records),
    RangeError,
    '1 examples lack some: example "one-1" of one has none of snapkv 16',
  );
  const [section] = collectSections(records, { partial: true });
  assertEquals(section!.leftOut, 1);
  for (const { records } of section!.configurations) {
    assertEquals([...records.values()].map(({ size }) => size), [11, 12]);
  }
  // A data set that a configuration never ran is a gap as well.
  assertThrows(
    () =>
      collectSections(
        folder().filter(({ method, task }) =>
          method.options.budget !== 16 || task.name === "two"
        ),
      ),
    RangeError,
    "12 examples lack some",
  );
});

Deno.test("collectSections() refuses a table without the uncompressed run", () => {
  const records = folder().filter(({ method }) => method.name !== "fullkv");
  assertThrows(() => collectSections(records), RangeError, 'no "fullkv"');
  const [section] = collectSections(records, { reference: "snapkv 32" });
  assertEquals(section!.configurations[0]!.name, "snapkv 32");
  assertThrows(
    () => collectSections(folder(), { reference: "h2o" }),
    RangeError,
    'it is "h2o"',
  );
  assertThrows(() => collectSections([]), RangeError, "there are 0");
});

Deno.test("collectSections() parts what may not be compared and names what differs", () => {
  const other = folder().map((one) => ({
    ...one,
    build: { commit: "def", abi: 3 },
  }));
  const both = [...folder(), ...other];
  assertEquals(
    collectSections(both).map(({ title }) => title),
    ["tiny commit=abc", "tiny commit=def"],
  );
  assertEquals(collectSections(both, { commit: "de" }).length, 1);
});

Deno.test("collectSections() tells configurations of one method and budget apart", () => {
  const wide = folder().filter(({ method }) => method.options.budget === 32)
    .map((one) => ({
      ...one,
      method: { name: "snapkv", options: { budget: 32, poolWidth: 5 } },
    }));
  const [section] = collectSections([...folder(), ...wide]);
  assertEquals(
    section!.configurations.map(({ name }) => name),
    [
      "fullkv",
      "snapkv 16",
      "snapkv 32 poolWidth=5",
      "snapkv 32 poolWidth=null",
    ],
  );
});

Deno.test("collectSections() refuses two records of one example", () => {
  const twice = record("fullkv", null, "one", 3, 0, {
    generation: { maxNewTokens: 9 },
  });
  assertThrows(
    () => collectSections([...folder(), twice]),
    RangeError,
    'has two of "one-3" that differ in maxNewTokens=9',
  );
});

Deno.test("summarise() pairs examples, corrects, and marks noise", () => {
  const [section] = collectSections(folder());
  const { configurations, pairs } = summarise(section!, {
    minEffect: 0.05,
    pairs: true,
  });
  const [full, low, high] = configurations;
  assertEquals(full!.average.difference, undefined);
  assertEquals(full!.average.mean, 1);
  assertEquals(low!.average.difference!.mean, -1);
  assertEquals(low!.average.difference!.noise, false);
  // One of 12 examples of each data set is lost: 2 of 2 signs agree, p = 1/2.
  assertEquals(high!.average.difference!.pValue, 0.5);
  assert(high!.average.difference!.noise);
  assert(Math.abs(high!.average.mean - 11 / 12) < 1e-12);
  assertEquals(high!.scores.get("one")!.difference!.noise, true);
  assertEquals(pairs.length, 3);
  assertEquals(high!.cost.share, 0.032);
  assertEquals(high!.cost.msPerToken, 2);
  assertEquals(high!.rows, [[32, 8], [32, 32]]);
  // The deviation of one loss in 12, halved by the second data set: (2.2414 + 0.8416)^2 * 0.2887^2 / 2 / 0.05^2.
  assertEquals(high!.examplesNeeded, 159);
  assertEquals(low!.examplesNeeded, 2);
});

Deno.test("sectionFigures() draws what there are records for", () => {
  const [section] = collectSections(folder());
  const names = sectionFigures(summarise(section!)).map(({ name }) => name);
  assertEquals(names, [
    "score_by_budget",
    "score_by_bytes",
    "heat_map_one_16",
    "heat_map_one_32",
    "heat_map_two_16",
    "heat_map_two_32",
    "rows_16",
    "rows_32",
  ]);
  const plain = folder().map((one) => ({ ...one, meta: {} }));
  const [other] = collectSections(plain);
  assertEquals(
    sectionFigures(summarise(other!)).filter(({ name }) =>
      name.startsWith("heat")
    ),
    [],
  );
});

Deno.test("reportMarkdown() and longTable() hold the same numbers", () => {
  const [section] = collectSections(folder());
  const summary = summarise(section!, { resamples: 200 });
  const figures = sectionFigures(summary);
  const page = reportMarkdown([{ summary, figures }]);
  for (
    const text of [
      "| fullkv | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 24 |",
      "| snapkv 16 | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] | 24 |",
      "![Score against the budget of each method](score_by_budget.svg)",
      "≈",
    ]
  ) assert(page.includes(text), page);
  const lines = toCsv(longTable([summary])).trim().split("\r\n");
  assertEquals(lines.length, 1 + 3 * 3);
  const cells = lines.find((line) => line.includes("snapkv 16,"))!;
  assert(cells.includes(",one,12,0,0,0,-1,-1,-1,"), cells);
});

/** A start that set out to run `examples` examples of both tasks with every configuration of the sample. */
function start(examples: number | null): RunMeta {
  return {
    startedAt: "2026-01-01T00:00:00Z",
    commit: "abc",
    hashes: { model: "0".repeat(64) },
    options: {
      runs: ["one", "two"].map((task) => ({
        task,
        examples,
        seed: 1,
        options: { seed: 1, size: 4 },
        configurations: [
          { method: "fullkv", options: {}, granularity: "kv_head" },
          ...[16, 32].map((budget) => ({
            method: "snapkv",
            options: { budget },
            granularity: "kv_head",
          })),
        ],
      })),
    },
  } as unknown as RunMeta;
}

Deno.test("collectSections() fails when a run was stopped before all had the same examples", () => {
  const whole = plannedOf([start(12), start(12)]);
  assertEquals(whole.length, 6);
  assertEquals(
    collectSections(folder(), { planned: whole })[0]!.unfinished,
    0,
  );
  const planned = plannedOf([start(15)]);
  assertThrows(
    () => collectSections(folder(), { planned }),
    RangeError,
    '18 are missing, for instance "fullkv" has 12 of 15 examples of one, seed 1',
  );
  const [section] = collectSections(folder(), { planned, partial: true });
  assertEquals([section!.unfinished, section!.leftOut], [18, 0]);
  // Another commit's plans are not this one's, and starts that say nothing ask for nothing.
  const later = { ...start(15), commit: "later" };
  assertThrows(
    () => collectSections(folder(), { planned: plannedOf([later]) }),
    RangeError,
    "90 are missing",
  );
  collectSections(folder(), { planned: plannedOf([later]), commit: "abc" });
  assertEquals(plannedOf([start(null)]), []);
});
