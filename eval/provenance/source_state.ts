/**
 * Which sources a run was made with: the commit of the checkout, and whether files differ from it.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { fromFileUrl, join, resolve } from "@std/path";
import config from "../../deno.json" with { type: "json" };
import { readIndex } from "./_git_index.ts";

/** State of the project's sources. */
export interface SourceState {
  /**
   * The commit; with `+` and a digest of the changed files when the working tree differs from it, so that records of
   * changed sources are never taken for those of the commit. Version and `unknown` where there is no checkout.
   */
  commit: string;
  /** Whether tracked files differ from the commit's; null when that cannot be told. */
  dirty: boolean | null;
}

/** Reads the state of this project's sources; what may not be read is taken as unknown. */
export function sourceState(
  root: string = fromFileUrl(new URL("../..", import.meta.url)),
): SourceState {
  const git = orUndefined(() => gitFolder(root));
  const commit = git && orUndefined(() => headCommit(git));
  if (git === undefined || commit === undefined) {
    return { commit: `${config.version}+unknown`, dirty: null };
  }
  const changes = orUndefined(() => changedFiles(root, git.own));
  if (changes === undefined) return { commit, dirty: null };
  if (changes === "") return { commit, dirty: false };
  return { commit: `${commit}+${changes}`, dirty: true };
}

/** A commit as {@linkcode SourceState} has it, its hash cut to twelve digits. */
export function shortCommit(commit: string): string {
  return commit.replace(/^([0-9a-f]{12})[0-9a-f]{28}/, "$1");
}

/** Folders of a checkout: a linked working tree has one of its own beside the common one. */
interface GitFolder {
  own: string;
  common: string;
}

function gitFolder(root: string): GitFolder {
  const path = join(root, ".git");
  if (Deno.statSync(path).isDirectory) return { own: path, common: path };
  const link = /^gitdir: (.+)$/m.exec(Deno.readTextFileSync(path));
  if (!link) throw new Deno.errors.NotFound(path);
  const own = resolve(root, link[1]!);
  const common = Deno.readTextFileSync(join(own, "commondir")).trim();
  return { own, common: resolve(own, common) };
}

function headCommit({ own, common }: GitFolder): string {
  const head = Deno.readTextFileSync(join(own, "HEAD")).trim();
  if (!head.startsWith("ref: ")) return head;
  const name = head.slice(5);
  const loose = orUndefined(() => Deno.readTextFileSync(join(common, name)));
  if (loose !== undefined) return loose.trim();
  const packed = Deno.readTextFileSync(join(common, "packed-refs"));
  const line = packed.split("\n").find((line) => line.endsWith(` ${name}`));
  if (line === undefined) throw new Deno.errors.NotFound(name);
  return line.slice(0, 40);
}

/** Files and folders that results depend on; permission sets under which records are written let them be read. */
export const SOURCES: readonly string[] = [
  ...["cli", "compat", "csrc", "eval", "ffi", "methods", "models", "tasks"],
  ...["deno.json", "deno.lock", "mod.ts"],
];

function isSource(path: string): boolean {
  return !path.endsWith(".md") && SOURCES.includes(path.split("/")[0]!);
}

/** A digest of the tracked sources that differ from the index; empty when none does. */
function changedFiles(root: string, git: string): string {
  const digest = createHash("sha256");
  let any = false;
  for (const entry of readIndex(Deno.readFileSync(join(git, "index")))) {
    if (!isSource(entry.path)) continue;
    const path = join(root, entry.path);
    const info = orMissing(() => Deno.statSync(path));
    if (
      info && info.size === entry.size &&
      Math.trunc((info.mtime?.getTime() ?? -1) / 1000) === entry.mtimeSeconds
    ) continue;
    const bytes = info && Deno.readFileSync(path);
    if (bytes && blobHash(bytes) === entry.hash) continue;
    any = true;
    digest.update(`${entry.path}\0${bytes ? blobHash(bytes) : ""}\n`);
  }
  return any ? digest.digest("hex").slice(0, 12) : "";
}

/** A file's hash as git knows it. */
function blobHash(bytes: Uint8Array): string {
  return createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes)
    .digest("hex");
}

function orMissing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function orUndefined<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotCapable ||
      error instanceof Deno.errors.NotADirectory ||
      error instanceof RangeError
    ) {
      return undefined;
    }
    throw error;
  }
}
