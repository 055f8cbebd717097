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
import {
  BuildError,
  librarySteps,
  reportBuildErrors,
  type Variant,
} from "./build.ts";
import { runPrograms, testPrograms } from "./_programs.ts";

const SANITIZERS = ["address,undefined", "thread", "none"];

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
  const programs = testPrograms(names);
  if (programs.length === 0) {
    throw new BuildError(
      `Cannot run the C tests as tests/csrc holds no such program: ${
        names.join(", ") || "*_test.c"
      }`,
    );
  }
  for (const sanitize of chosen) await runUnder(programs, sanitize);
}

/** Runs the programs under one set of sanitizers. */
async function runUnder(programs: string[], sanitize: string): Promise<void> {
  const instrument = sanitizerFlags(sanitize);
  const variant: Variant = {
    folder: `build/sanitize/${sanitize.replace(",", "_")}`,
    flags: ["-O1", "-g", "-Werror", ...instrument],
  };
  const failed = await runPrograms(programs, {
    title: `under ${sanitize}`,
    variant,
    library: librarySteps(["core", "cpu"], variant),
    link: {
      compiler: "cc",
      before: [...instrument, "-pthread"],
      after: ["-lm"],
    },
  });
  if (failed > 0) Deno.exitCode = 1;
}

/** Compiler and linker flags of sanitizers. */
export function sanitizerFlags(sanitize: string): string[] {
  if (sanitize === "none") return [];
  return [
    `-fsanitize=${sanitize}`,
    "-fno-omit-frame-pointer",
    ...(sanitize === "thread" ? [] : ["-fno-sanitize-recover=all"]),
  ];
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
