/**
 * Tests the CUDA build: the C test programs and the Deno tests that open the library.
 *
 *     deno task test:gpu [name ...]        on a GPU; the C tests also under compute-sanitizer's memcheck and racecheck
 *     deno task test:emulated [name ...]   on the CPU, by the emulator of csrc/emulator; the C tests under sanitizers
 *
 * With `--order=N` the emulator shuffles the order of threads; a result that depends on it shows a missing barrier.
 *
 * Names choose C test programs, or "deno" for the Deno tests; without names everything runs. What was skipped is said in
 * the last lines. Needs to read csrc, tests/csrc and build, to write build, and to run the compilers, deno and
 * build/native_test.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { join } from "@std/path";
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
  "tests/engine/promises_test.ts",
  "tests/engine/scheduler_test.ts",
];

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    boolean: ["emulated"],
    string: ["order"],
    default: { order: "0" },
    unknown: (arg: string) => {
      if (!arg.startsWith("-")) return true;
      throw new BuildError(
        `Cannot test the CUDA build as a flag is unknown: "${arg}"; --emulated and --order are known`,
      );
    },
  });
  const order = String(flags.order);
  if (!/^\d{1,9}$/.test(order)) {
    throw new BuildError(
      `Cannot test the CUDA build as --order must be a number: it is "${order}"`,
    );
  }
  if (order !== "0" && flags.emulated !== true) {
    throw new BuildError(
      "Cannot test the CUDA build as --order is for the emulator: --emulated is missing",
    );
  }
  const names = flags._.map(String);
  const programs = testPrograms(names.filter((name) => name !== "deno"));
  const wantsC = names.length === 0 || names.some((name) => name !== "deno");
  if (wantsC && programs.length === 0) {
    throw new BuildError(
      `Cannot test the CUDA build as tests/csrc holds no such program: ${
        names.join(", ")
      }`,
    );
  }
  const skipped: string[] = [];
  let failed = 0;
  if (wantsC) {
    for (
      const bench of await benches(flags.emulated === true, order, skipped)
    ) {
      failed += await runPrograms(programs, bench);
    }
  }
  if (names.length === 0 || names.includes("deno")) {
    failed += await runDeno(flags.emulated === true) ? 0 : 1;
  }
  for (const line of skipped) say(`skipped: ${line}`);
  say(`${skipped.length} skipped, ${failed} failed`);
  if (failed > 0) Deno.exitCode = 1;
}

async function benches(
  emulated: boolean,
  order: string,
  skipped: string[],
): Promise<Bench[]> {
  if (emulated) {
    const instrument = sanitizerFlags("address,undefined");
    const variant: Variant = {
      folder: "build/emulated/sanitize",
      flags: ["-O1", "-g", ...instrument],
    };
    skipped.push("compute-sanitizer, which needs a GPU");
    return [{
      title: "on the emulator under address,undefined",
      variant,
      env: { KVF_EMULATOR_ORDER: order },
      library: await emulatedSteps(variant),
      link: {
        compiler: "c++",
        before: [...instrument, "-pthread"],
        after: ["-ldl", "-lm"],
      },
    }];
  }
  const variant: Variant = { folder: "build/obj", flags: ["-O3"] };
  const plain: Bench = {
    title: "on the GPU",
    variant,
    library: cudaSteps(CUDA_ARCHITECTURES, variant),
    link: { compiler: "nvcc", before: [], after: CUDA_LINK },
  };
  if (!await hasSanitizer()) {
    skipped.push(
      "memcheck and racecheck, as compute-sanitizer is not on PATH",
    );
    return [plain];
  }
  const under = ["memcheck", "racecheck"].map((tool): Bench => ({
    ...plain,
    title: `on the GPU under ${tool}`,
    under: ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"],
  }));
  return [plain, ...under];
}

async function hasSanitizer(): Promise<boolean> {
  try {
    const { success } = await new Deno.Command("compute-sanitizer", {
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

/** The Deno tests choose the library by the one that they may open. */
async function runDeno(emulated: boolean): Promise<boolean> {
  const deno = async (...args: string[]) => {
    const child = new Deno.Command("deno", {
      args,
      cwd: ROOT,
      stdin: "null",
      stdout: "inherit",
      stderr: "inherit",
    });
    return (await child.output()).success;
  };
  const config = ["--config", join(ROOT, "deno.json")];
  const target = emulated ? "build:emulated" : "build:cuda";
  if (!await deno("task", "-q", ...config, target)) return false;
  return await deno(
    "test",
    "-q",
    "--no-prompt",
    ...config,
    emulated ? "-P=test-emulated" : "-P=test-cuda",
    ...DENO_TESTS,
  );
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
