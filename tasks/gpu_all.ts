/**
 * Everything that is to be known from a GPU, in one command: builds for its architecture alone, runs the C tests and the
 * Deno tests, measures, times what we are compared with. Every step has a time limit, writes a log of its own, and the next
 * one comes whatever happened before; a table of all steps is the last thing that is printed.
 *
 *     deno task gpu:all [--out=results/gpu] [--seconds=900] [--arch=90a]
 *     deno task gpu:sanitize [...]    the C tests under compute-sanitizer's memcheck and racecheck
 *
 * `--steps` names the steps to take, `--seconds` bounds all of them together, and `--emulated` puts the emulator in the
 * GPU's place, to try the order of steps. Needs to read tasks/gpu and results, to write results, and to run deno, python3
 * and timeout, which ends a step with all its processes.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { join, resolve } from "@std/path";
import { CHILD_ENV } from "./_child.ts";
import { readModelConfig } from "../models/mod.ts";
import { BuildError, reportBuildErrors, ROOT, say } from "./build.ts";
import { type Measurement, table } from "./gpu/_table.ts";

const SHAPE = "tasks/gpu/llama-3-8b.json";

/** A step: its command, and the same on the emulator where there is one. */
interface Step {
  name: string;
  /** Seconds at most. */
  limit: number;
  command: (arch: string) => string[];
  emulated?: string[];
}

/** What became of a step. */
interface Outcome {
  name: string;
  result: string;
  seconds: number;
  /** Where it is of use: the last line that was printed. */
  last: string;
}

const deno = (set: string, script: string, ...args: string[]): string[] => [
  ...["deno", "run", "-q", "--no-prompt", "--node-modules-dir=manual"],
  ...["--config", join(ROOT, "deno.json"), `-P=${set}`, script, ...args],
];

const cTests = (name: string, under: string, limit: number): Step => ({
  name,
  limit,
  command: (arch) => [
    ...deno("gpu", "tasks/test_gpu.ts", "c", `--under=${under}`),
    ...[`--arch=${arch}`, `--limit=${Math.ceil(limit / 3)}`],
  ],
});

const STEPS: Step[] = [
  {
    name: "build",
    limit: 200,
    command: (arch) =>
      deno("build-cuda", "tasks/build.ts", "cuda", `--arch=${arch}`),
    emulated: deno("build-emulated", "tasks/build.ts", "emulated"),
  },
  {
    ...cTests("c", "plain", 150),
    emulated: deno("gpu", "tasks/test_gpu.ts", "c", "--emulated"),
  },
  {
    name: "deno",
    limit: 400,
    command: (arch) => [
      ...deno("gpu", "tasks/test_gpu.ts", "deno"),
      ...[`--arch=${arch}`, "--limit=200"],
    ],
    emulated: deno("gpu", "tasks/test_gpu.ts", "deno", "--emulated"),
  },
  {
    name: "bench",
    limit: 300,
    command: (arch) => [
      ...deno("bench-gpu", "tasks/bench_gpu.ts", `--arch=${arch}`),
      ...["--repeats=5", "--json"],
    ],
  },
  {
    name: "model",
    limit: 100,
    command: () => deno("bench-model", "tasks/bench_model.ts", "--json"),
  },
  {
    name: "peer",
    limit: 120,
    command: () => ["python3", "tasks/gpu/peer_torch.py", "--repeats=5"],
  },
  // A hundred times slower than alone, and more.
  cTests("memcheck", "memcheck", 900),
  cTests("racecheck", "racecheck", 1800),
];

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    boolean: ["emulated"],
    string: ["out", "seconds", "arch", "steps"],
    default: {
      out: "results/gpu",
      seconds: "900",
      arch: "90a",
      steps: "build,c,deno,bench,model,peer",
    },
    unknown: (arg: string) => {
      throw new BuildError(
        `Cannot run on the GPU as an argument is unknown: "${arg}"; --out, --seconds, --arch, --steps and --emulated are known`,
      );
    },
  });
  const seconds = Number(flags.seconds);
  if (!(seconds > 0)) {
    throw new BuildError(
      `Cannot run on the GPU as --seconds must be a number above 0: it is "${flags.seconds}"`,
    );
  }
  const steps = String(flags.steps).split(",").map((name) => {
    const step = STEPS.find((step) => step.name === name);
    if (step !== undefined) return step;
    throw new BuildError(
      `Cannot run on the GPU as a step is unknown: "${name}"; ${
        STEPS.map(({ name }) => name).join(", ")
      } are known`,
    );
  });
  const out = resolve(ROOT, String(flags.out));
  await Deno.mkdir(out, { recursive: true });
  const end = performance.now() + 1000 * seconds;
  const outcomes: Outcome[] = [];
  for (const step of steps) {
    const command = flags.emulated
      ? step.emulated
      : step.command(String(flags.arch));
    outcomes.push(await take(step, command, end, `${out}/${step.name}.log`));
  }
  report(out, outcomes);
  if (outcomes.some(({ result }) => /^(failed|ended)/.test(result))) {
    Deno.exitCode = 1;
  }
}

/** Runs a step within its limit and the time that is left. */
async function take(
  { name, limit }: Step,
  command: string[] | undefined,
  end: number,
  log: string,
): Promise<Outcome> {
  const start = performance.now();
  const left = Math.floor((end - start) / 1000);
  const not = (result: string) => ({ name, result, seconds: 0, last: "" });
  if (command === undefined) return not("skipped: needs a GPU");
  if (left < 5) return not("skipped: no time is left");
  const most = Math.min(limit, left);
  say(`${name}: at most ${most} s`);
  using file = await Deno.open(log, {
    write: true,
    create: true,
    truncate: true,
  });
  const child = new Deno.Command("timeout", {
    env: CHILD_ENV,
    args: ["-k", "5", String(most), ...command],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const keep = async (part: Uint8Array<ArrayBuffer>) => {
    for (let at = 0; at < part.length;) {
      at += await file.write(part.subarray(at));
    }
  };
  const [status] = await Promise.all([
    child.status,
    child.stdout.pipeTo(new WritableStream({ write: keep })),
    child.stderr.pipeTo(new WritableStream({ write: keep })),
  ]);
  const taken = (performance.now() - start) / 1000;
  const result = status.success
    ? "ok"
    : status.code === 124 || status.code === 137
    ? `ended after ${most} s`
    : `failed, status ${status.code}`;
  const lines = (await Deno.readTextFile(log)).trimEnd().split("\n");
  if (!status.success) {
    for (const line of lines.slice(-12)) {
      say(`  ${line}`);
    }
  }
  return { name, result, seconds: taken, last: lines.at(-1) ?? "" };
}

/** The measurements as a table, and what became of the steps; both as files, too. */
function report(out: string, outcomes: Outcome[]): void {
  const measured = ["bench", "model"].flatMap((name) =>
    lines(`${out}/${name}.log`, outcomes, name)
  );
  const peer = lines(`${out}/peer.log`, outcomes, "peer");
  const parts: string[] = [];
  if (measured.length > 0) {
    parts.push(table(readModelConfig(join(ROOT, SHAPE)), measured, peer));
  }
  parts.push(
    outcomes.map(({ name, result, seconds, last }) =>
      [
        name.padEnd(10),
        `${seconds.toFixed(0)} s`.padStart(6),
        result.padEnd(20),
        result === "ok" && !last.startsWith("}") ? last.slice(0, 80) : "",
      ].join("  ").trimEnd()
    ).join("\n"),
  );
  const text = `${parts.join("\n\n")}\n`;
  Deno.writeTextFileSync(`${out}/report.txt`, text);
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

/** The measurements in a log of this run. */
function lines(
  path: string,
  outcomes: Outcome[],
  name: string,
): Measurement[] {
  const ran = outcomes.find((outcome) => outcome.name === name);
  if (ran === undefined || ran.seconds === 0) return [];
  return Deno.readTextFileSync(path).split("\n").filter((line) =>
    line.startsWith('{"what"')
  ).flatMap((line) => {
    try {
      return [JSON.parse(line) as Measurement];
    } catch {
      return []; // cut off in the middle when its time was over
    }
  });
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
