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

/**
 * Programs that are started directly are all linked to this one place, so that the permission to run them can name it.
 * What another program starts has a place of its own, behind this name.
 */
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
  /** Test programs that run at a time under another program. Default 1. */
  jobs?: number;
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
  const { variant, library, link, under, only, without = [] } = bench;
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
  const linked = programs.map((path, i): [name: string, step: Step] => {
    const name = basename(path, ".c");
    const inputs = [tests[i]!.output, ...objects];
    return [name, {
      compiler: link.compiler,
      args: [...link.before, ...inputs, ...link.after],
      inputs: [...inputs, ...headers()],
      output: under === undefined ? PROGRAM : `${PROGRAM}_${name}`,
      inPlace: true,
    }];
  });
  if (under !== undefined) {
    await runSteps(linked.map(([, step]) => step), variant.folder);
  }
  let failed = 0;
  const left = linked.values();
  const work = async (): Promise<void> => {
    for (const [name, step] of left) {
      if (under === undefined) await runSteps([step], variant.folder);
      if (!await runProgram(name, step.output, bench)) failed++;
    }
  };
  const jobs = under === undefined ? 1 : bench.jobs ?? 1;
  await Promise.all(Array.from({ length: jobs }, work));
  say(
    `C tests ${bench.title}: ${tests.length - failed} passed, ${failed} failed`,
  );
  return failed;
}

/** Runs a program that is linked; false when it fails. */
async function runProgram(
  name: string,
  path: string,
  { under, env, limit }: Bench,
): Promise<boolean> {
  const [program, ...args] = [...under ?? [], join(ROOT, path)];
  const start = performance.now();
  const { success, code, signal, stdout, stderr } = await new Deno.Command(
    program!,
    {
      args,
      cwd: ROOT,
      stdin: "null",
      env: { ...CHILD_ENV, ...env },
      ...(limit === undefined
        ? {}
        : { signal: AbortSignal.timeout(limit * 1000) }),
    },
  ).output();
  const time = `${Math.round(performance.now() - start)} ms`;
  if (success) say(`ok      ${name} (${time})`);
  else {
    say(`FAILED  ${name} (${time}, ${signal ?? `status ${code}`})`);
    for (const output of [stdout, stderr]) Deno.stderr.writeSync(output);
  }
  return success;
}
