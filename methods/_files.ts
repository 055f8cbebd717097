/**
 * Files that options name: the one place where methods read something.
 *
 * @module
 */

/** The text of a file that an option names. Needs permission to read it. */
export function readOptionFile(method: string, path: string): string {
  if (path === "") {
    throw new TypeError(
      `Cannot run "${method}" as it needs a file: none is given`,
    );
  }
  return Deno.readTextFileSync(path);
}
