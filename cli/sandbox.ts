// deno-lint-ignore-file no-console -- the command line prints
/**
 * The host of a script that is not trusted. The script runs in a worker: there Deno asks for read permission before it
 * loads any module, data URLs and JSON included, while modules of a main program are loaded without asking.
 * The script's address is in this module's query, so that `Deno.args` are the script's own.
 *
 * @module
 */
import { Worker } from "node:worker_threads";
import { fromFileUrl } from "@std/path";

/** Runs a script in a worker; resolves to its exit status. */
export function runScript(script: URL): Promise<number> {
  return new Promise((resolve) => {
    let failed = false;
    const worker = new Worker(script);
    worker.on("error", (error: Error) => {
      failed = true;
      console.error(explain(error.message));
    });
    worker.on(
      "exit",
      (status: number) => resolve(failed ? status || 1 : status),
    );
  });
}

function isFile(url: URL): boolean {
  try {
    return Deno.statSync(url).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** A refusal in words; other errors were shown by the worker already. */
function explain(message: string): string {
  const refused = /Requires (\w+) access(?: to )?(.*?), run again/.exec(
    message,
  );
  if (!refused) return `error: the script failed: ${message}`;
  const [, kind, what] = refused;
  return `error: the sandbox refused ${kind} access${
    what ? ` to ${what}` : ""
  }: the script may read its --model and --data folders, write its --out folder and load one library`;
}

if (import.meta.main) {
  const script = new URL(import.meta.url).searchParams.get("script");
  if (script === null) {
    console.error(
      "error: Cannot run a script as its address must be given: use deno task kvf sandbox",
    );
    Deno.exit(2);
  }
  const url = new URL(script);
  if (!isFile(url)) {
    console.error(
      `error: Cannot run a script as it must be a file: "${fromFileUrl(url)}"`,
    );
    Deno.exit(2);
  }
  Deno.exit(await runScript(url));
}
