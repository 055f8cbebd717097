/**
 * Links and runs the C test programs against one build of the library.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { CHILD_ENV } from "./_child.ts";
import {
  compileC,
  type Compiler,
  headers,
  ROOT,
  runSteps,
  say,
  sources,
  type Step,
  type Variant,
} from "./build.ts";

/** Every program is linked to this one place, so that the permission to run it can name it. */
const PROGRAM = "build/native_test";

/** What the programs are linked with, and how they are run. */
export interface Bench {
  /** Named in the summary. */
  title: string;
  /** Folder and flags of the objects. */
  variant: Variant;
  /** Steps that compile the library. */
  library: Step[];
  /** The linker and its arguments. */
  link: { compiler: Compiler; before: string[]; after: string[] };
  /** A program that runs the test program, with its arguments. */
  under?: string[];
  /** Environment of the test program. */
  env?: Record<string, string>;
  /** Names of the only programs that it runs. */
  only?: string[];
  /** Names of programs that it does not run. */
  without?: string[];
  /** Seconds after which a program is ended and counts as failed. */
  limit?: number;
}

/** Sources of the C test programs; all of them without names. */
export function testPrograms(names: string[]): string[] {
  return sources("tests/csrc", "_test.c").filter((path) =>
    names.length === 0 || names.includes(basename(path, "_test.c"))
  );
}

/** Builds and runs programs, prints a line for each, and returns how many failed. */
export async function runPrograms(
  programs: string[],
  bench: Bench,
): Promise<number> {
  const { variant, library, link, only, without = [] } = bench;
  programs = programs.filter((path) => {
    const name = basename(path, "_test.c");
    return (only ?? [name]).includes(name) && !without.includes(name);
  });
  if (programs.length === 0) return 0;
  const helpers = sources("tests/csrc", ".c")
    .filter((path) => !path.endsWith("_test.c"))
    .map((source) => compileC(source, variant));
  const tests = programs.map((source) => compileC(source, variant));
  await runSteps([...library, ...helpers, ...tests], variant.folder);
  const objects = [...library, ...helpers].map((step) => step.output);
  let failed = 0;
  for (const test of tests) {
    await runSteps([{
      compiler: link.compiler,
      args: [...link.before, test.output, ...objects, ...link.after],
      inputs: [test.output, ...objects, ...headers()],
      output: PROGRAM,
      inPlace: true,
    }], variant.folder);
    const name = basename(test.output, ".o").replace(/^csrc_/, "");
    const [program, ...args] = [...bench.under ?? [], join(ROOT, PROGRAM)];
    const start = performance.now();
    const { success, code, signal, stdout, stderr } = await new Deno.Command(
      program!,
      {
        args,
        cwd: ROOT,
        stdin: "null",
        env: { ...CHILD_ENV, ...bench.env },
        ...(bench.limit === undefined
          ? {}
          : { signal: AbortSignal.timeout(bench.limit * 1000) }),
      },
    ).output();
    const time = `${Math.round(performance.now() - start)} ms`;
    if (success) say(`ok      ${name} (${time})`);
    else {
      failed++;
      say(`FAILED  ${name} (${time}, ${signal ?? `status ${code}`})`);
      for (const output of [stdout, stderr]) Deno.stderr.writeSync(output);
    }
  }
  say(
    `C tests ${bench.title}: ${tests.length - failed} passed, ${failed} failed`,
  );
  return failed;
}
