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
  /** Further arguments of that program, for a run each. Default: one run without any. */
  runs?: string[][];
  /** What the output of such a run must say. */
  clean?: RegExp;
  /** Runs at a time under another program. Default 1. */
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
  const failed = under === undefined
    ? await runInTurn(linked, bench)
    : await runUnder(linked, under, bench);
  say(
    `C tests ${bench.title}: ${tests.length - failed} passed, ${failed} failed`,
  );
  return failed;
}

type Linked = [name: string, step: Step][];

/** Links and runs one program after the other; returns how many failed. */
async function runInTurn(linked: Linked, bench: Bench): Promise<number> {
  let failed = 0;
  for (const [name, step] of linked) {
    await runSteps([step], bench.variant.folder);
    const result = await run([join(ROOT, step.output)], bench);
    report(name, [result]);
    if (!result.success) failed++;
  }
  return failed;
}

/** Runs programs that are linked under another one, several runs at a time; returns how many programs failed. */
async function runUnder(
  linked: Linked,
  under: string[],
  bench: Bench,
): Promise<number> {
  const runs = bench.runs ?? [[]];
  const results = linked.map((): Result[] => []);
  const left = linked.flatMap(([name, step], i) =>
    runs.map((args) => ({ name, path: join(ROOT, step.output), i, args }))
  ).values();
  let failed = 0;
  const work = async (): Promise<void> => {
    for (const { name, path, i, args } of left) {
      const result = await run([...under, ...args, path], bench);
      results[i]!.push(result);
      if (results[i]!.length < runs.length) continue;
      report(name, results[i]!);
      if (results[i]!.some(({ success }) => !success)) failed++;
    }
  };
  await Promise.all(Array.from({ length: bench.jobs ?? 1 }, work));
  return failed;
}

/** What became of a run. */
interface Result {
  success: boolean;
  /** Milliseconds. */
  time: number;
  /** How it ended. */
  status: string;
  command: string[];
  output: Uint8Array<ArrayBuffer>[];
}

async function run(
  command: string[],
  { env, limit, clean }: Bench,
): Promise<Result> {
  const [program, ...args] = command;
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
  const text = [stdout, stderr].map((part) => new TextDecoder().decode(part));
  const says = clean === undefined || text.some((part) => clean.test(part));
  return {
    success: success && says,
    time: Math.round(performance.now() - start),
    status: success && !says
      ? "with findings"
      : String(signal ?? `status ${code}`),
    command,
    output: [stdout, stderr],
  };
}

/** A line for a program, and the output of the runs that failed. */
function report(name: string, results: Result[]): void {
  const time = `${results.reduce((sum, result) => sum + result.time, 0)} ms`;
  const bad = results.filter(({ success }) => !success);
  const many = results.length > 1 ? `, ${results.length} runs` : "";
  if (bad.length === 0) {
    say(`ok      ${name} (${time}${many})`);
    return;
  }
  say(`FAILED  ${name} (${time}${many}, ${bad[0]!.status})`);
  for (const { command, output } of bad) {
    if (many !== "") say(command.join(" "));
    for (const part of output) Deno.stderr.writeSync(part);
  }
}
