/**
 * Facts about this program for records.
 *
 * @module
 */
import config from "../../deno.json" with { type: "json" };
import { fromFileUrl } from "@std/path";

/** Commit of the checkout, or the version with "unknown" where there is no checkout or no permission to look. */
export function commit(): string {
  const root = fromFileUrl(new URL("../..", import.meta.url));
  try {
    const head = Deno.readTextFileSync(`${root}/.git/HEAD`).trim();
    if (!head.startsWith("ref: ")) return head;
    return Deno.readTextFileSync(`${root}/.git/${head.slice(5)}`).trim();
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotCapable ||
      error instanceof Deno.errors.NotADirectory
    ) {
      return `${config.version}+unknown`;
    }
    throw error;
  }
}
