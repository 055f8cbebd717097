/** Plans: what they mean, what they are refused for, and the array job that shares one. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  combinations,
  expandPlan,
  parsePlan,
  type PlanInput,
  planJsonSchema,
  planPaths,
  readPlan,
  slurmScript,
} from "../../eval/sweep/mod.ts";
import { labelsOf } from "../../eval/engine/mod.ts";
import { RULER_TASKS } from "../../tasks/mod.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));
const PLAN: PlanInput = {
  models: ["models/a", { path: "models/b", device: "cuda:1", dtype: "f32" }],
  tasks: [
    { name: "needle", options: { lengths: [512], depths: 2 } },
    {
      name: "vt",
      options: { count: 3 },
      grid: { length: [512, 1024], hops: [1, 2] },
    },
  ],
  configurations: [
    "fullkv",
    { method: "snapkv", grid: { poolWidth: [1, 7] } },
    { method: "h2o", budgets: [96], granularities: ["kv_head", "query_head"] },
  ],
  budgets: [64, 128],
  seeds: [1, 2],
};

Deno.test("parsePlan fills defaults in and lets a name stand for an object", () => {
  const plan = parsePlan(PLAN);
  assertEquals(plan.models, [
    { path: "models/a", device: "cpu" },
    { path: "models/b", device: "cuda:1", dtype: "f32" },
  ]);
  assertEquals(plan.configurations[0], {
    method: "fullkv",
    options: {},
    grid: {},
    granularities: ["kv_head"],
  });
  assertEquals(plan.out, "results/sweep");
});

Deno.test("parsePlan says which field is wrong", () => {
  const wrong: [object, string][] = [
    [{ models: [] }, "models"],
    [{ tasks: [{ name: "vt", option: {} }] }, "tasks"],
    [
      { configurations: [{ method: "snapkv", budgets: [0] }] },
      "configurations",
    ],
    [{ budgets: 64 }, "budgets"],
    [{ seeds: [1.5] }, "seeds"],
    [{ protocol: { truncate: "end" } }, "protocol"],
    [{ colour: "red" }, "colour"],
  ];
  for (const [change, field] of wrong) {
    assertThrows(
      () => parsePlan({ ...PLAN, ...change }, "mine.json"),
      SyntaxError,
      field,
    );
  }
});

Deno.test("expandPlan crosses tasks with seeds and methods with budgets, options and layouts", async () => {
  const runs = await expandPlan(parsePlan(PLAN));
  assertEquals(
    runs.map(({ task, seed }) => [
      task.name,
      seed,
      task.options.length ?? null,
      task.options.hops ?? null,
      task.options.seed ?? null,
      task.count,
    ]),
    [
      ["needle", 1, null, null, 1, 2],
      ["needle", 2, null, null, 2, 2],
      ["vt", 1, 512, 1, 1, 3],
      ["vt", 2, 512, 1, 2, 3],
      ["vt", 1, 512, 2, 1, 3],
      ["vt", 2, 512, 2, 2, 3],
      ["vt", 1, 1024, 1, 1, 3],
      ["vt", 2, 1024, 1, 2, 3],
      ["vt", 1, 1024, 2, 1, 3],
      ["vt", 2, 1024, 2, 2, 3],
    ],
  );
  const [{ configurations }] = runs as [typeof runs[number]];
  assertEquals(labelsOf(configurations), [
    "FullKV",
    "SnapKV 64 poolWidth=1",
    "SnapKV 128 poolWidth=1",
    "SnapKV 64 poolWidth=7",
    "SnapKV 128 poolWidth=7",
    "H2O 96 granularity=kv_head",
    "H2O 96 granularity=query_head",
  ]);
  // Every run of a model has the very same configurations, so that they share prefills.
  assert(runs.every((run) => run.configurations === configurations));
});

Deno.test("expandPlan takes configurations that come to the same once", async () => {
  const [run] = await expandPlan(
    parsePlan({
      ...PLAN,
      configurations: [
        "snapkv",
        { method: "snapkv", budgets: [64], options: { poolWidth: 7 } },
      ],
    }),
  );
  assertEquals(run!.configurations.length, 2);
});

Deno.test("expandPlan expands ruler/* and refuses what makes no sense", async () => {
  const all = await expandPlan(
    parsePlan({ ...PLAN, seeds: [1], tasks: ["ruler/*"] }),
  );
  assertEquals(all.map(({ task }) => task.name), [...RULER_TASKS]);
  const refused: [Partial<PlanInput>, string][] = [
    [{ tasks: ["nidle"] }, "nidle"],
    [{ tasks: [{ name: "vt", options: { seed: 3 } }] }, "seeds"],
    [{ tasks: [{ name: "vt", options: { hop: 3 } }] }, "hop"],
    [{ configurations: ["snapkw"] }, "snapkv"],
    [
      { configurations: [{ method: "snapkv", options: { poolwidth: 3 } }] },
      "poolwidth",
    ],
  ];
  for (const [change, part] of refused) {
    const error = await assertRejects(() =>
      expandPlan(parsePlan({ ...PLAN, ...change }))
    );
    assert((error as Error).message.includes(part), (error as Error).message);
  }
});

Deno.test("a plan's own protocol goes before the plan's, and LongBench's before the defaults", async () => {
  const [needle, vt] = await expandPlan(
    parsePlan({
      ...PLAN,
      seeds: [1],
      protocol: { minNewTokens: 2 },
      tasks: ["needle", { name: "vt", protocol: { minNewTokens: 3 } }],
    }),
  );
  assertEquals(needle!.protocol, { minNewTokens: 2 });
  assertEquals(vt!.protocol, { minNewTokens: 3 });
});

Deno.test("planPaths lists the files of all combinations", () => {
  const plan = parsePlan({
    ...PLAN,
    tasks: [
      { name: "longbench/lcc", options: { data: "d" } },
      { name: "needle", grid: { haystack: ["h1", "h2"] } },
    ],
    configurations: [
      "./mine.ts",
      { method: "headkv", options: { headFile: "heads.json" } },
    ],
  });
  assertEquals(planPaths(plan), ["d", "h1", "h2", "./mine.ts", "heads.json"]);
});

Deno.test("readPlan reads JSON and modules and names the file of a broken one", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const write = (name: string, text: string | Uint8Array): string => {
    const path = `${folder}/${name}`;
    if (typeof text === "string") Deno.writeTextFileSync(path, text);
    else Deno.writeFileSync(path, text);
    return path;
  };
  const json = write("plan.json", JSON.stringify(PLAN));
  const module = write(
    "plan.ts",
    `const budgets: number[] = [64, 128]; export default { ...${
      JSON.stringify(PLAN)
    }, budgets };`,
  );
  assertEquals(await readPlan(json), parsePlan(PLAN));
  assertEquals(await readPlan(module), parsePlan(PLAN));
  const broken: [string, string | Uint8Array][] = [
    ["cut.json", JSON.stringify(PLAN).slice(0, 50)],
    ["empty.json", ""],
    ["bytes.json", Uint8Array.of(0x7b, 0xff, 0xfe)],
    ["list.json", "[]"],
    ["none.ts", "export const plan = 1;"],
  ];
  for (const [name, text] of broken) {
    await assertRejects(() => readPlan(write(name, text)), SyntaxError, name);
  }
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("the example plan is valid, and the published schema is that of the code", async () => {
  const plan = await readPlan(`${ROOT}/plans/example.json`);
  assertEquals((await expandPlan(plan)).length, 4);
  const published = JSON.parse(
    Deno.readTextFileSync(`${ROOT}/eval/sweep/plan.schema.json`),
  );
  assertEquals(published, planJsonSchema());
});

Deno.test("combinations crosses all values", () => {
  assertEquals(combinations({}), [{}]);
  assertEquals(combinations({ a: [1, 2], b: ["x", null] }), [
    { a: 1, b: "x" },
    { a: 1, b: null },
    { a: 2, b: "x" },
    { a: 2, b: null },
  ]);
});

Deno.test("slurmScript writes one shard per task and quotes every word", () => {
  const job = {
    name: "kvf-sweep",
    shards: 3,
    cwd: "/data/my runs",
    config: "/opt/kvf/deno.json",
    args: ["sweep", "it's.json", "--out", "/data/out"],
    logs: "/data/out",
    options: ["--time=1:00:00", "--partition=gpu", "--exclusive"],
  };
  assertEquals(
    slurmScript(job),
    `#!/bin/bash
#SBATCH --job-name=kvf-sweep
#SBATCH --array=1-3
#SBATCH --output=/data/out/slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --time=1:00:00
#SBATCH --partition=gpu
#SBATCH --exclusive

# One shard per task of the array; finished records are never computed again.
set -euo pipefail
cd '/data/my runs'
exec deno task --quiet --config /opt/kvf/deno.json kvf sweep 'it'\\''s.json' --out /data/out \\
  --shard "$SLURM_ARRAY_TASK_ID/3"
`,
  );
  for (const option of ["time=1", "--a b", "--a=1\n#SBATCH --b", ""]) {
    assertThrows(() => slurmScript({ ...job, options: [option] }), RangeError);
  }
});
