/**
 * Tests the CUDA build: the C test programs and the Deno tests that open the library.
 *
 *     deno task test:gpu [name ...]        on a GPU; the C tests also under compute-sanitizer's memcheck and racecheck
 *     deno task test:emulated [name ...]   on the CPU, by the emulator of csrc/emulator; the C tests under sanitizers
 *
 * With `--order=N` the emulator shuffles the order of threads; a result that depends on it shows a missing barrier. It
 * stands for compute capability 9.0, and runs the tests of attention once more for 8.0, which has kernels of its own.
 *
 * Names choose C test programs, "c" for all of them, or "deno" for the Deno tests; without names everything runs.
 * `--under=plain,memcheck,racecheck` names the ways to run the C tests on a GPU, `--arch=90a` compiles for that GPU alone,
 * and `--limit=N` ends what takes longer than N seconds: a C program, or a file or folder of Deno tests. What was skipped is said in
 * the last lines. Needs to read csrc, tests/csrc and build, to write build, and to run the compilers, deno,
 * compute-sanitizer, timeout and build/native_test.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { join } from "@std/path";
import { CHILD_ENV } from "./_child.ts";
import {
  BuildError,
  CUDA_ARCHITECTURES,
  CUDA_LINK,
  cudaSteps,
  emulatedSteps,
  reportBuildErrors,
  ROOT,
  say,
  type Variant,
} from "./build.ts";
import { type Bench, runPrograms, testPrograms } from "./_programs.ts";
import { sanitizerFlags } from "./test_native.ts";

/** Deno tests that open the library. */
const DENO_TESTS = [
  "tests/ffi",
  "tests/engine/golden_test.ts",
  "tests/engine/acting_test.ts",
  "tests/engine/minference_test.ts",
  "tests/engine/packed_test.ts",
  "tests/engine/processes_test.ts",
  "tests/engine/programs_test.ts",
  "tests/engine/promises_test.ts",
  "tests/engine/scheduler_test.ts",
  "tests/engine/shapes_test.ts",
  "tests/methods",
];

/** How the C tests may be run on a GPU. */
const UNDER = ["plain", "memcheck", "racecheck"];

/** Programs whose kernels others run as well. */
const NO_RACES = ["fuzz", "handles", "library", "pages", "state"];

/**
 * Racecheck looks at stretches of so many launches, each in a run of its own, from the first launch, this one, twice, four
 * times, eight times as far on ...: a whole program takes it many minutes.
 */
const STRETCH = 1000;
const STRETCHES = 8;

interface Options {
  emulated: boolean;
  order: string;
  arch: string;
  under: string[];
  limit?: number;
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    boolean: ["emulated"],
    string: ["order", "arch", "under", "limit"],
    default: { order: "0", arch: CUDA_ARCHITECTURES, under: UNDER.join(",") },
    unknown: (arg: string) => {
      if (!arg.startsWith("-")) return true;
      throw new BuildError(
        `Cannot test the CUDA build as a flag is unknown: "${arg}"; --emulated, --order, --arch, --under and --limit are known`,
      );
    },
  });
  const options: Options = {
    emulated: flags.emulated === true,
    order: String(flags.order),
    arch: String(flags.arch),
    under: String(flags.under).split(","),
    ...(flags.limit === undefined ? {} : { limit: Number(flags.limit) }),
  };
  check(options, flags.under !== UNDER.join(","));
  const names = flags._.map(String);
  const all = names.length === 0 || names.includes("c");
  const chosen = names.filter((name) => name !== "deno" && name !== "c");
  const programs = all || chosen.length > 0
    ? testPrograms(all ? [] : chosen)
    : [];
  if (chosen.length > 0 && programs.length === 0) {
    throw new BuildError(
      `Cannot test the CUDA build as tests/csrc holds no such program: ${
        chosen.join(", ")
      }`,
    );
  }
  const skipped: string[] = [];
  let failed = 0;
  if (programs.length > 0) {
    for (const bench of await benches(options, skipped)) {
      failed += await runPrograms(programs, bench);
    }
  }
  if (names.length === 0 || names.includes("deno")) {
    failed += await runDeno(options);
  }
  for (const line of skipped) say(`skipped: ${line}`);
  say(`${skipped.length} skipped, ${failed} failed`);
  if (failed > 0) Deno.exitCode = 1;
}

function check(options: Options, underGiven: boolean): void {
  const { emulated, order, under, limit } = options;
  const refuse = (why: string) => {
    throw new BuildError(`Cannot test the CUDA build as ${why}`);
  };
  if (!/^\d{1,9}$/.test(order)) {
    refuse(`--order must be a number: it is "${order}"`);
  }
  if (order !== "0" && !emulated) {
    refuse("--order is for the emulator: --emulated is missing");
  }
  if (emulated && underGiven) refuse("--under is for a GPU: leave it out");
  const unknown = under.find((name) => !UNDER.includes(name));
  if (unknown !== undefined) {
    refuse(`--under must name some of ${UNDER.join(", ")}: "${unknown}"`);
  }
  if (limit !== undefined && !(limit > 0)) {
    refuse(`--limit must be seconds above 0: it is ${limit}`);
  }
}

async function benches(options: Options, skipped: string[]): Promise<Bench[]> {
  const limit = options.limit === undefined ? {} : { limit: options.limit };
  if (options.emulated) {
    const instrument = sanitizerFlags("address,undefined");
    const variant: Variant = {
      folder: "build/emulated/sanitize",
      flags: ["-O1", "-g", ...instrument],
    };
    skipped.push("compute-sanitizer, which needs a GPU");
    const newest: Bench = {
      title: "on the emulator under address,undefined",
      variant,
      env: { KVF_EMULATOR_ORDER: options.order },
      library: await emulatedSteps(variant),
      link: {
        compiler: "c++",
        before: [...instrument, "-pthread"],
        after: ["-ldl", "-lm"],
      },
      ...limit,
    };
    return [newest, {
      ...newest,
      title: `${newest.title}, compute capability 8.0`,
      env: { ...newest.env, KVF_EMULATOR_CAPABILITY: "80" },
      only: ["attention"],
    }];
  }
  const variant: Variant = { folder: "build/obj", flags: ["-O3"] };
  const plain: Bench = {
    title: "on the GPU",
    variant,
    library: cudaSteps(options.arch, variant),
    link: { compiler: "nvcc", before: [], after: CUDA_LINK },
  };
  // A tool that was ended would leave the program running, which is a process of its own.
  const ended = options.limit === undefined
    ? []
    : ["timeout", String(options.limit)];
  const tools = options.under.filter((name) => name !== "plain");
  const usable = tools.length > 0 && await hasSanitizer() ? tools : [];
  if (usable.length < tools.length) {
    skipped.push(
      `${tools.join(" and ")}, as compute-sanitizer is not on PATH`,
    );
  }
  if (usable.includes("racecheck")) {
    skipped.push(
      `racecheck of ${NO_RACES.join(", ")}, whose kernels others run too`,
    );
    skipped.push(
      `racecheck of launches outside of ${STRETCHES} stretches of ${STRETCH} of each program`,
    );
  }
  return [
    ...(options.under.includes("plain") ? [{ ...plain, ...limit }] : []),
    ...usable.map((tool): Bench => ({
      ...plain,
      title: `on the GPU under ${tool}`,
      under: [
        ...ended,
        ...["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"],
      ],
      // Most of the time goes to a processor each.
      jobs: Math.max(1, navigator.hardwareConcurrency - 2),
      ...(tool === "racecheck"
        ? { runs: stretches(), clean: /RACECHECK SUMMARY: 0 hazards/ }
        : { clean: /ERROR SUMMARY: 0 errors/ }),
      // It needs the emulator's faults, and compute-sanitizer fails a program that uses no GPU.
      without: ["memory", ...(tool === "racecheck" ? NO_RACES : [])],
    })),
  ];
}

/** compute-sanitizer's arguments for the stretches of a program's launches. */
function stretches(): string[][] {
  return Array.from({ length: STRETCHES }, (_, i) => [
    ...(i === 0 ? [] : ["--launch-skip", String(STRETCH * 2 ** (i - 1))]),
    ...["--launch-count", String(STRETCH)],
  ]);
}

async function hasSanitizer(): Promise<boolean> {
  try {
    const { success } = await new Deno.Command("compute-sanitizer", {
      env: CHILD_ENV,
      args: ["--version"],
      stdout: "null",
      stderr: "null",
    }).output();
    return success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The Deno tests choose the library by the one that they may open. Returns how many of DENO_TESTS failed. */
async function runDeno(options: Options): Promise<number> {
  const deno = async (args: string[], limit?: number) => {
    const child = new Deno.Command("deno", {
      env: CHILD_ENV,
      args,
      cwd: ROOT,
      stdin: "null",
      stdout: "inherit",
      stderr: "inherit",
      ...(limit === undefined
        ? {}
        : { signal: AbortSignal.timeout(limit * 1000) }),
    });
    return (await child.output()).success;
  };
  // Without a network: what lies in node_modules is all there is. Types were checked before.
  const common = [
    ...["-q", "--no-prompt", "--no-check", "--node-modules-dir=manual"],
    ...["--config", join(ROOT, "deno.json")],
  ];
  const build = options.emulated
    ? ["-P=build-emulated", "tasks/build.ts", "emulated"]
    : ["-P=build-cuda", "tasks/build.ts", "cuda", `--arch=${options.arch}`];
  // One of the tests reads the CPU library.
  const cpu = ["-P=build", "tasks/build.ts", "cpu"];
  for (const target of [cpu, build]) {
    if (!await deno(["run", ...common, ...target])) return 1;
  }
  const permissions = options.emulated ? "-P=test-emulated" : "-P=test-cuda";
  let failed = 0;
  for (const path of DENO_TESTS) {
    const args = ["test", ...common, permissions, path];
    if (await deno(args, options.limit)) continue;
    failed++;
    say(`FAILED  ${path}`);
  }
  return failed;
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
