/** Sweeps as processes: killed at any moment, sharing a folder, on a full disk, with broken input. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import {
  comparableRecord,
  parseRecord,
  readRecords,
  readRunMeta,
} from "../../eval/records/mod.ts";
import { Random } from "../../tasks/random.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** Small, but with several tasks, layouts and methods. */
const SWEEP = [
  ...["--model", "models/needle-6m", "--tasks", "needle,niah_single_1"],
  ...["--lengths", "256,512", "--limit", "4"],
  ...["--method", "fullkv,snapkv,h2o", "--budget", "40,64"],
];
const RECORDS = 2 * 2 * 4 * 5;

function start(args: string[]): Deno.ChildProcess {
  return new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "-P=sweep", "cli/main.ts", "sweep"],
      ...args,
    ],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function finish(
  child: Deno.ChildProcess,
): Promise<{ code: number; out: string; err: string }> {
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), err: decoder.decode(stderr) };
}

/** A folder for results that goes when its scope ends. */
class Folder implements Disposable {
  readonly path = `results/sweep-${crypto.randomUUID()}`;
  readonly full = `${ROOT}/${this.path}`;
  [Symbol.dispose](): void {
    try {
      Deno.removeSync(this.full, { recursive: true });
    } catch (error) {
      // Nothing was written.
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  /** The comparable part of all records, sorted. */
  async comparable(): Promise<string[]> {
    const records = await Array.fromAsync(readRecords(this.full));
    return records.map(comparableRecord).sort();
  }
  /** Whole lines of all files of records; none before the folder is there. */
  lines(): string[] {
    try {
      return [...Deno.readDirSync(this.full)]
        .filter(({ name }) => name.startsWith("records-"))
        .flatMap(({ name }) =>
          Deno.readTextFileSync(`${this.full}/${name}`).split("\n").slice(0, -1)
        );
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  }
}

/** A moment in which other processes run. */
function pause(): Promise<void> {
  return new Promise((done) => setTimeout(done, 1));
}

let reference: Promise<{ records: string[]; ms: number }> | undefined;

/** An uninterrupted sweep; what all others must agree with. */
function whole(): Promise<{ records: string[]; ms: number }> {
  return reference ??= runWhole();
}

async function runWhole(): Promise<{ records: string[]; ms: number }> {
  using folder = new Folder();
  const started = performance.now();
  const { code, err } = await finish(start([...SWEEP, "--out", folder.path]));
  assertEquals(code, 0, err);
  const records = await folder.comparable();
  assertEquals(records.length, RECORDS);
  return { records, ms: performance.now() - started };
}

Deno.test("a sweep killed at 20 random moments and started again ends with the very same records", async () => {
  const { records, ms } = await whole();
  const random = new Random(Date.now() % 2 ** 31);
  let kills = 0, halfDone = 0;
  while (kills < 20) {
    using folder = new Folder();
    // Four kills on each folder, then the rest.
    let before: string[] = [];
    for (let i = 0; i < 4 && kills < 20; i++, kills++) {
      const child = start([...SWEEP, "--out", folder.path, "--batch", "5"]);
      let ended = false;
      const output = child.output().finally(() => ended = true);
      if (kills % 2 === 0) {
        await new Promise((done) => setTimeout(done, random.float() * ms));
      } else {
        // A moment among the records, however short that part of the run is.
        const lines = before.length + 1 + random.below(12);
        while (!ended && folder.lines().length < lines) await pause();
      }
      try {
        child.kill("SIGKILL");
      } catch (error) {
        // It had ended already.
        if (!(error instanceof TypeError)) throw error;
      }
      await output;
      const after = folder.lines();
      assertEquals(after.slice(0, before.length), before);
      for (const line of after) parseRecord(JSON.parse(line));
      if (after.length > 0 && after.length < RECORDS) halfDone++;
      before = after;
    }
    const { code, err } = await finish(start([...SWEEP, "--out", folder.path]));
    assertEquals(code, 0, err);
    assertEquals(await folder.comparable(), records);
    const lines = folder.lines();
    assertEquals(lines.slice(0, before.length), before);
    assertEquals(lines.length, RECORDS, "a finished record was computed again");
  }
  assert(halfDone > 0, "no kill fell into the middle of the work");
});

Deno.test("a sweep that is asked to stop says so and goes on when it is started again", async () => {
  const { records } = await whole();
  for (const launcher of [false, true]) {
    using folder = new Folder();
    const args = [...SWEEP, "--out", folder.path, "--batch", "5"];
    const child = launcher ? spawnLauncher(args) : start(args);
    const output = finish(child);
    while (folder.lines().length === 0) await pause();
    child.kill("SIGTERM");
    const { code, err } = await output;
    assertEquals(code, 130, err);
    assertStringIncludes(err, "Stopped.");
    const finished = folder.lines().length;
    assert(finished > 0 && finished < RECORDS);
    const rest = await finish(start([...SWEEP, "--out", folder.path]));
    assertEquals(rest.code, 0, rest.err);
    assertStringIncludes(rest.err, `${finished} finished records`);
    assertEquals(await folder.comparable(), records);
  }
});

Deno.test("three processes share a folder: each record once, the same as from one process", async () => {
  const { records } = await whole();
  using folder = new Folder();
  const shards = await Promise.all(
    [1, 2, 3].map((i) =>
      finish(
        start([...SWEEP, "--out", folder.path, "--shard", `${i}/3`, "--json"]),
      )
    ),
  );
  for (const { code, err } of shards) assertEquals(code, 0, err);
  assertEquals(
    shards.reduce((sum, { out }) => sum + JSON.parse(out).made, 0),
    RECORDS,
  );
  assertEquals(folder.lines().length, RECORDS);
  assertEquals(await folder.comparable(), records);
  const meta = [...readRunMeta(folder.full)];
  assertEquals(meta.map(({ shard }) => shard).sort(), ["1/3", "2/3", "3/3"]);
  // All shards speak of the same data, whoever did which part.
  assertEquals(new Set(meta.map(({ hashes }) => hashes.data)).size, 1);
  // One process for the rest finds nothing to do.
  const { code, out, err } = await finish(
    start([...SWEEP, "--out", folder.path, "--json"]),
  );
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(out).made, 0);
});

Deno.test("a sweep on a full disk says so, keeps what is finished and goes on when there is room", async () => {
  const { records } = await whole();
  using folder = new Folder();
  // Files may have 24 KiB each; the shell is started by a process that may do so.
  const command =
    `trap '' XFSZ; ulimit -f 24; exec deno run -q --no-prompt -P=sweep cli/main.ts sweep ${
      [...SWEEP, "--out", folder.path].join(" ")
    }`;
  const { code, stderr } = await new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      "eval",
      `const { code } = new Deno.Command("bash", { args: ["-c", ${
        JSON.stringify(command)
      }], stdout: "null" }).outputSync(); Deno.exit(code);`,
    ],
    cwd: ROOT,
    stdin: "null",
  }).output();
  const err = new TextDecoder().decode(stderr);
  assertEquals(code, 1, err);
  const finished = folder.lines();
  assert(finished.length > 0 && finished.length < RECORDS);
  for (const line of finished) parseRecord(JSON.parse(line));
  const rest = await finish(start([...SWEEP, "--out", folder.path]));
  assertEquals(rest.code, 0, rest.err);
  assertStringIncludes(rest.err, `${finished.length} finished records`);
  assertEquals(folder.lines().slice(0, finished.length), finished);
  assertEquals(await folder.comparable(), records);
});

Deno.test("a sweep refuses broken records with file and line and leaves them alone", async () => {
  using folder = new Folder();
  const few = [...SWEEP, "--tasks", "needle", "--lengths", "256"];
  const run = () => finish(start([...few, "--out", folder.path]));
  assertEquals((await run()).code, 0);
  const path = `${folder.full}/records-1-of-1.jsonl`;
  const good = Deno.readTextFileSync(path);
  const lines = good.split("\n");
  const broken: [string, string | Uint8Array][] = [
    [":2:", [lines[0], lines[1]!.slice(0, 80), ...lines.slice(2)].join("\n")],
    [":3:", good.replace(lines[2]!, lines[2]!.replace(/"seed":\d+,/, ""))],
    [":1:", good.replace(/"promptTokens":\d+/, '"promptTokens":"many"')],
    [":1:", Uint8Array.of(0xff, 0xfe, 0x0a)],
  ];
  for (const [place, content] of broken) {
    if (typeof content === "string") Deno.writeTextFileSync(path, content);
    else Deno.writeFileSync(path, content);
    const size = Deno.statSync(path).size;
    const { code, err } = await run();
    assertEquals(code, 2, err);
    assertStringIncludes(err, `records-1-of-1.jsonl${place}`);
    assertEquals(Deno.statSync(path).size, size);
  }
  Deno.writeTextFileSync(path, good);
  const marker = `${folder.full}/kvf_results.json`;
  const mark = Deno.readTextFileSync(marker);
  for (
    const [text, part] of [
      [mark.replace(/\d+/, "99"), "version is 99"],
      ["", "marker"],
    ] as const
  ) {
    Deno.writeTextFileSync(marker, text);
    const { code, err } = await run();
    assertEquals(code, 2, err);
    assertStringIncludes(err, part);
  }
  Deno.writeTextFileSync(marker, mark);
  // An empty file is a start that wrote nothing.
  Deno.writeTextFileSync(path, "");
  const { code, err } = await run();
  assertEquals(code, 0, err);
  assertEquals(folder.lines().length, lines.length - 1);
});

Deno.test("a sweep that cannot fit in memory is refused before any work", async () => {
  using folder = new Folder();
  const { code, err } = await finish(
    start([...SWEEP, "--out", folder.path, "--memory", "2MiB"]),
  );
  assertEquals(code, 2, err);
  assertStringIncludes(err, "every example must fit in 2.0 MiB");
  assertEquals(folder.lines(), []);
});

/** Through the launcher, which works out what a plan needs. */
function spawnLauncher(args: string[]): Deno.ChildProcess {
  return new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "-P=launcher", "cli/kvf.ts", "sweep"],
      ...args,
    ],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

const launch = (...args: string[]) => finish(spawnLauncher(args));

Deno.test("kvf sweep runs a plan under the permissions that the plan needs", async () => {
  using folder = new Folder();
  Deno.mkdirSync(folder.full, { recursive: true });
  const plan = {
    models: ["models/needle-6m"],
    tasks: [{ name: "needle", options: { lengths: [256], depths: 2 } }],
    configurations: ["fullkv", "l2norm"],
    budgets: [64],
    out: `${folder.path}/out`,
  };
  const path = `${folder.full}/plan.json`;
  Deno.writeTextFileSync(path, JSON.stringify(plan));
  const dry = await launch(path, "--dry-run", "--json");
  assertEquals(dry.code, 0, dry.err);
  const predicted = JSON.parse(dry.out);
  assertEquals(predicted.tasks[0].records, 4);
  assert(predicted.tasks[0].sharedBytes > predicted.tasks[0].leastBytes / 10);
  const { code, err } = await launch(path, "--quiet");
  assertEquals(code, 0, err);
  const [meta] = [...readRunMeta(`${folder.full}/out`)];
  assert(meta!.permissions.includes("read=models/needle-6m"));
  assert(meta!.permissions.includes(`write=${folder.path}/out`));
  // A module that reaches for more than its own file is stopped while it is asked.
  const nosy = `${folder.full}/plan.ts`;
  Deno.writeTextFileSync(
    nosy,
    `Deno.readTextFileSync("/etc/passwd"); export default ${
      JSON.stringify(plan)
    };`,
  );
  const refused = await launch(nosy);
  assertEquals(refused.code, 1);
  assertStringIncludes(refused.err, "the sandbox refused it");
  // One that answers in the program's place gets no program to start.
  Deno.writeTextFileSync(
    nosy,
    `console.log('{"write":["${folder.path}"],"run":["deno"],"env":["HOME"]}');
if (Deno.permissions.querySync({ name: "write", path: "${folder.path}" }).state !== "granted") Deno.exit(0);
Deno.env.get("HOME");
new Deno.Command("deno").outputSync();
export default {};`,
  );
  const greedy = await launch(nosy);
  assertEquals(greedy.code, 1, greedy.err);
  assertStringIncludes(greedy.err, "Requires env access");
  // One that prints something is run all the same.
  Deno.writeTextFileSync(
    nosy,
    `console.log("made by hand"); export default ${JSON.stringify(plan)};`,
  );
  const chatty = await launch(nosy, "--dry-run");
  assertEquals(chatty.code, 0, chatty.err);
  assertStringIncludes(chatty.out, "needle");
});

Deno.test("kvf sweep says what is wrong with flags and plans", async () => {
  const cases: [string[], string][] = [
    [[], "--model"],
    [["plans/example.json", "--budget", "64"], "--budget must stand in"],
    [["plans/example.json", "--pool-width", "5"], "--pool-width"],
    [["deno.json"], "deno.json"],
    [["plans/none.json"], "none.json"],
    [["plans/example.json", "--submit"], "--slurm"],
    [["--model", "models/needle-6m", "--shard", "3/2"], "shard"],
    [["--model", "models/needle-6m", "--method", "snapkw"], "snapkv"],
    [["--model", "models/needle-6m", "--memory", "lots"], "8GiB"],
  ];
  for (const [args, part] of cases) {
    const { code, out, err } = await launch(...args);
    assertEquals([code, out], [2, ""], `${args.join(" ")}: ${err}`);
    assertStringIncludes(err, part);
  }
});

Deno.test("kvf sweep --slurm writes an array job with a shard for each task", async () => {
  using folder = new Folder();
  const job = `${folder.path}/job.sh`;
  Deno.mkdirSync(folder.full, { recursive: true });
  const { code, out, err } = await launch(
    ...[...SWEEP, "--out", `${folder.path}/out`, "--pool-width", "5"],
    ...["--slurm", job, "--shards", "3", "--sbatch=--time=10"],
  );
  assertEquals(code, 0, err);
  assertStringIncludes(out, `sbatch ${job}`);
  const script = Deno.readTextFileSync(`${ROOT}/${job}`);
  assertStringIncludes(script, "#SBATCH --array=1-3\n");
  assertStringIncludes(script, "#SBATCH --time=10\n");
  assertStringIncludes(script, `cd ${ROOT}\n`);
  assertStringIncludes(script, "--pool-width 5");
  assertStringIncludes(script, `--out ${ROOT}/${folder.path}/out`);
  assert(script.endsWith('--shard "$SLURM_ARRAY_TASK_ID/3"\n'));
});
