// deno-lint-ignore-file no-console -- the command line prints
/**
 * The `kvf` program itself. It runs with the permissions that the launcher (`kvf.ts`) worked out, or with those of a
 * task in `deno.json`.
 *
 * @module
 */
import { CommanderError } from "@commander-js/extra-typings";
import { confineNative } from "../ffi/_library.ts";
import { createProgram } from "./program.ts";
import { StoppedError, UsageError } from "./spec.ts";

/** Runs a command line; resolves to the exit status: 0 good, 1 failed, 2 wrong usage or input. */
export async function main(args: string[]): Promise<number> {
  let status = 0;
  const program = createProgram(async (spec, call) => {
    status = await spec.run({ ...call, granted: spec.grants(call) });
  });
  try {
    await program.parseAsync(args, { from: "user" });
    return status;
  } catch (error) {
    return report(error);
  }
}

/** Prints an error the way its kind deserves and returns the exit status. */
export function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  if (!(error instanceof Error)) {
    console.error(`error: ${error}`);
    return 1;
  }
  if (error instanceof StoppedError) {
    console.error(error.message);
    return 130;
  }
  // Whoever reads the output has seen enough, as `head` has: no fault.
  if (error instanceof Deno.errors.BrokenPipe) return 141;
  if (error instanceof Deno.errors.NotCapable) {
    // The advice that Deno adds is for its own command line.
    const what = error.message.replace(/, run again with .*$/s, "");
    console.error(`error: the sandbox refused it: ${what}`);
    return 1;
  }
  const system = systemWords(error);
  console.error(`error: ${system ?? error.message}`);
  const usage = error instanceof UsageError || error instanceof TypeError ||
    error instanceof RangeError ||
    error instanceof SyntaxError || error instanceof Deno.errors.NotFound ||
    Object.keys(COMPLAINTS).some((complaint) =>
      error.message.includes(`${complaint} (os error`)
    );
  // A fault of our own shows where it happened; a fault of the input is told in one line.
  if (
    !usage && system === undefined && error.name === "Error" && error.stack
  ) {
    console.error(error.stack);
  }
  return usage ? 2 : 1;
}

/** What must hold of a path, by the system's complaint about what it was told; a disk that fails or fills up is none. */
const COMPLAINTS: Readonly<Record<string, string>> = {
  "No such file or directory": "it, or its folder, must be there",
  "Is a directory": "it must be a file",
  "Not a directory": "its folder must be one",
  "Permission denied": "its owner and mode must let you",
  "Read-only file system": "its file system must take changes",
};

/** The system's complaint about a file in our own form; undefined for other errors. */
function systemWords({ message }: Error): string | undefined {
  const parts = /^(.+) \(os error \d+\)(?:: \w+ '(.*)')?/s.exec(message);
  if (!parts) return undefined;
  const [, complaint, path] = parts;
  if (path === undefined) return complaint;
  const must = COMPLAINTS[complaint!] ?? "the system must let it be";
  return `Cannot use "${path}" as ${must}: ${complaint}`;
}

if (import.meta.main) {
  // Files of users' methods come later.
  confineNative();
  Deno.exit(await main(Deno.args));
}
