// deno-lint-ignore-file no-console -- a script that prints
/**
 * What sharing prefills and batches is worth: one sweep of 40 configurations against single runs of the same program,
 * each a process of its own over the same prompts, and whether both give the same records.
 *
 * Single runs may be sampled (`--singles 5`): the time of all 40 is then 40 times the mean of the sampled ones, which are
 * spread evenly over the configurations and take turns with the sweep. `--singles 40` runs them all.
 *
 * Permissions: read and write of `results`, starting Deno.
 *
 * @module
 */
import { fromFileUrl, join } from "@std/path";
import { parseArgs } from "node:util";
import { CHILD_ENV } from "./_child.ts";
import { comparableRecord, readRecords } from "../eval/records/mod.ts";

const ROOT = fromFileUrl(new URL("..", import.meta.url));

/** Method and budget. */
type Column = readonly [method: string, budget?: number];

/** 40 configurations. */
const CONFIGURATIONS: readonly Column[] = [
  ["fullkv"],
  ...["streamingllm", "h2o", "snapkv", "pyramidkv", "adakv", "l2norm"].flatMap(
    (method) =>
      [48, 64, 96, 128, 192, 256].map((budget): Column => [method, budget]),
  ),
  ["streamingllm", 512],
  ["h2o", 512],
  ["snapkv", 512],
];

const { values: flags } = parseArgs({
  options: {
    prompts: { type: "string", default: "50" },
    length: { type: "string", default: "2048" },
    singles: { type: "string", default: "5" },
    model: { type: "string", default: "models/needle-6m" },
    task: { type: "string", default: "niah_single_1" },
    // The factor below which the run fails.
    target: { type: "string", default: "8" },
  },
});

function count(name: "prompts" | "length" | "singles", most: number): number {
  const value = Number(flags[name]);
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new RangeError(
    `Cannot measure as --${name} must be an integer from 1 to ${most}: it is ${
      flags[name]
    }`,
  );
}

/** Runs a plan in a process of its own; seconds from start to end, loading the model included. */
async function run(
  folder: string,
  name: string,
  columns: readonly Column[],
): Promise<number> {
  const path = join(folder, `${name}.json`);
  const plan = {
    models: [flags.model],
    tasks: [{
      name: flags.task,
      options: {
        count: count("prompts", 1e6),
        length: count("length", 1e6),
      },
    }],
    configurations: columns.map(([method, budget]) => ({
      method,
      ...(budget === undefined ? {} : { budgets: [budget] }),
    })),
    out: join(folder, name),
  };
  Deno.writeTextFileSync(path, JSON.stringify(plan));
  const started = performance.now();
  const { code, stderr } = await new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "-P=sweep", "cli/main.ts", "sweep"],
      ...[path, "--quiet", "--json"],
    ],
    cwd: ROOT,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  return (performance.now() - started) / 1e3;
}

/** Comparable parts of all records by key. */
async function records(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const record of readRecords(folder)) {
    found.set(record.key, comparableRecord(record));
  }
  return found;
}

/** Compares the records of a single run with those of the sweep. */
async function checkEqual(sweep: string, single: string): Promise<number> {
  const expected = await records(sweep);
  const found = await records(single);
  for (const [key, record] of found) {
    if (expected.get(key) === record) continue;
    throw new Error(
      `Cannot trust the sweep as its records must be those of single runs: ${key} in "${single}" differs`,
    );
  }
  return found.size;
}

const singles = count("singles", CONFIGURATIONS.length);
const sampled = Array.from(
  { length: singles },
  (_, i) =>
    CONFIGURATIONS[
      Math.floor((i + 0.5) * CONFIGURATIONS.length / singles)
    ]!,
);
Deno.mkdirSync(join(ROOT, "results"), { recursive: true });
const folder = Deno.makeTempDirSync({
  dir: join(ROOT, "results"),
  prefix: "bench-sweep-",
});
try {
  const seconds: number[] = [];
  const single = async (i: number): Promise<void> => {
    const [method, budget = ""] = sampled[i]!;
    const time = await run(folder, `single-${i}`, [sampled[i]!]);
    seconds.push(time);
    console.log(`single run: ${method} ${budget}: ${time.toFixed(1)} s`);
  };
  const half = singles >> 1;
  for (let i = 0; i < half; i++) await single(i);
  const sweep = await run(folder, "sweep", CONFIGURATIONS);
  console.log(
    `sweep of ${CONFIGURATIONS.length} configurations: ${sweep.toFixed(1)} s`,
  );
  for (let i = half; i < singles; i++) await single(i);
  let compared = 0;
  for (let i = 0; i < singles; i++) {
    compared += await checkEqual(
      join(folder, "sweep"),
      join(folder, `single-${i}`),
    );
  }
  const mean = seconds.reduce((a, b) => a + b, 0) / singles;
  const factor = CONFIGURATIONS.length * mean / sweep;
  console.log(
    `${flags.prompts} prompts of ${flags.length} tokens, ${CONFIGURATIONS.length} single runs ${
      singles === CONFIGURATIONS.length
        ? "took"
        : `would take (from ${singles} of them)`
    } ${(CONFIGURATIONS.length * mean).toFixed(0)} s: the sweep is ${
      factor.toFixed(1)
    } times faster; ${compared} records are equal token for token`,
  );
  if (factor < Number(flags.target)) {
    console.error(`error: the sweep must be ${flags.target} times faster`);
    Deno.exitCode = 1;
  }
} finally {
  Deno.removeSync(folder, { recursive: true });
}
