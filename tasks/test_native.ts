/**
 * Builds and runs the C test programs, tests/csrc/*_test.c, under sanitizers. Each program has a main; exit status 0
 * means passed.
 *
 *     deno task test:native [--sanitize=address,undefined|thread|none] [name ...]
 *
 * Without the flag they run twice, under the address and undefined behaviour sanitizers and under the thread sanitizer.
 * Needs to read csrc, tests/csrc and build, to write build, and to run cc and build/native_test.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, join } from "@std/path";
import {
  BuildError,
  compileC,
  librarySteps,
  reportBuildErrors,
  ROOT,
  runSteps,
  say,
  sources,
  type Variant,
} from "./build.ts";

const SANITIZERS = ["address,undefined", "thread", "none"];

/** Every program is linked to this one place, so that the permission to run it can name it. */
const PROGRAM = "build/native_test";

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: ["sanitize"],
    unknown: (arg: string) => {
      if (!arg.startsWith("-")) return true;
      throw new BuildError(
        `Cannot run the C tests as a flag is unknown: "${arg}"; --sanitize is known`,
      );
    },
  });
  const chosen = flags.sanitize === undefined
    ? ["address,undefined", "thread"]
    : [String(flags.sanitize)];
  for (const sanitize of chosen) {
    if (SANITIZERS.includes(sanitize)) continue;
    throw new BuildError(
      `Cannot run the C tests as --sanitize must be one of ${
        SANITIZERS.join(" | ")
      }: it is "${sanitize}"`,
    );
  }
  const names = flags._.map(String);
  const programs = sources("tests/csrc", "_test.c").filter((path) =>
    names.length === 0 || names.includes(basename(path, "_test.c"))
  );
  if (programs.length === 0) {
    throw new BuildError(
      `Cannot run the C tests as tests/csrc holds no such program: ${
        names.join(", ") || "*_test.c"
      }`,
    );
  }
  for (const sanitize of chosen) await runPrograms(programs, sanitize);
}

/** Builds and runs the programs under one set of sanitizers. */
async function runPrograms(
  programs: string[],
  sanitize: string,
): Promise<void> {
  const instrument = sanitize === "none" ? [] : [
    `-fsanitize=${sanitize}`,
    "-fno-omit-frame-pointer",
    ...(sanitize === "thread" ? [] : ["-fno-sanitize-recover=all"]),
  ];
  const variant: Variant = {
    folder: `build/sanitize/${sanitize.replace(",", "_")}`,
    flags: ["-O1", "-g", "-Werror", ...instrument],
  };
  const library = librarySteps(["core", "cpu"], variant);
  const helpers = sources("tests/csrc", ".c")
    .filter((path) => !path.endsWith("_test.c"))
    .map((source) => compileC(source, variant));
  const tests = programs.map((source) => compileC(source, variant));
  await runSteps([...library, ...helpers, ...tests], variant.folder);
  const objects = [...library, ...helpers].map((step) => step.output);
  let failed = 0;
  for (const test of tests) {
    await runSteps([{
      compiler: "cc",
      args: [...instrument, "-pthread", test.output, ...objects, "-lm"],
      inputs: [test.output, ...objects],
      output: PROGRAM,
      inPlace: true,
    }], variant.folder);
    const name = basename(test.output, ".o").replace(/^csrc_/, "");
    const start = performance.now();
    const { success, code, stdout, stderr } = await new Deno.Command(
      join(ROOT, PROGRAM),
      { cwd: ROOT, stdin: "null" },
    ).output();
    const time = `${Math.round(performance.now() - start)} ms`;
    if (success) say(`ok      ${name} (${time})`);
    else {
      failed++;
      say(`FAILED  ${name} (${time}, status ${code})`);
      for (const output of [stdout, stderr]) Deno.stderr.writeSync(output);
    }
  }
  say(
    `C tests under ${sanitize}: ${
      tests.length - failed
    } passed, ${failed} failed`,
  );
  if (failed > 0) Deno.exitCode = 1;
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
