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
function runScript(script: URL): Promise<number> {
  return new Promise((resolve) => {
    let failed = false;
    const worker = new Worker(new URL("./_sandboxed.ts", import.meta.url), {
      workerData: { script: script.href },
    });
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

/** Why a script cannot be run; undefined when it can. */
function obstacle(script: URL): string | undefined {
  const path = fromFileUrl(script);
  try {
    if (!Deno.statSync(script).isFile) return `it must be a file: "${path}"`;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return `it must be a file: "${path}"`;
  }
  // It would do nothing, without a word.
  return /\bimport\.meta\.main\b/.test(Deno.readTextFileSync(script))
    ? `it must do its work without asking for import.meta.main, which is false where another module lets it in: "${path}"`
    : undefined;
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
  }: the script may read its --model and --data folders, write its --out folder and use the toolkit`;
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
  const reason = obstacle(url);
  if (reason !== undefined) {
    console.error(`error: Cannot run a script as ${reason}`);
    Deno.exit(2);
  }
  Deno.exit(await runScript(url));
}
