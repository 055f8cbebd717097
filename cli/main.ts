// deno-lint-ignore-file no-console -- the command line prints
/**
 * The `kvf` program itself. It runs with the permissions that the launcher (`kvf.ts`) worked out, or with those of a
 * task in `deno.json`.
 *
 * @module
 */
import { CommanderError } from "@commander-js/extra-typings";
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
  if (error instanceof Deno.errors.NotCapable) {
    console.error(`error: the sandbox refused it: ${error.message}`);
    return 1;
  }
  console.error(`error: ${error.message}`);
  const usage = error instanceof UsageError || error instanceof TypeError ||
    error instanceof RangeError ||
    error instanceof SyntaxError || error instanceof Deno.errors.NotFound;
  // A fault of our own shows where it happened; a fault of the input is told in one line.
  if (!usage && error.name === "Error" && error.stack) {
    console.error(error.stack);
  }
  return usage ? 2 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
