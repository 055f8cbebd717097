/** The command line in a process of its own. */
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";

/** The project's folder. */
export const ROOT = fromFileUrl(new URL("../..", import.meta.url))
  .replace(/\/$/, "");

/** What a process left behind. */
export interface Outcome {
  /** Exit status. */
  code: number;
  /** Standard output. */
  out: string;
  /** Standard error. */
  err: string;
}

/** Runs Deno in the project's folder. */
export async function deno(...args: string[]): Promise<Outcome> {
  const { code, stdout, stderr } = await new Deno.Command("deno", {
    env: CHILD_ENV,
    args,
    cwd: ROOT,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), err: decoder.decode(stderr) };
}

/** Runs `kvf` through its launcher. */
export function kvf(...args: string[]): Promise<Outcome> {
  return deno(
    ...["run", "-q", "--no-prompt", "-P=launcher", "cli/kvf.ts", ...args],
  );
}
