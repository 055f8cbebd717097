/**
 * What a `kvf` command is: flags, the permissions that a call with certain flags needs, and the work. The launcher
 * (`kvf.ts`) and the program itself (`main.ts`) read the same declarations, so a flag that names a folder and the
 * permission for that folder cannot drift apart.
 *
 * @module
 */
import type { Command } from "@commander-js/extra-typings";

/** What one call may touch. Paths may be relative to the caller's working directory. */
export interface Grants {
  /** Files and folders to read. */
  read?: string[];
  /** Files and folders to write; they are readable as well. */
  write?: string[];
  /** True when the native library is used. */
  native?: boolean;
  /** Device given by `--device`; names the library. */
  device?: string;
  /** Environment variables to read. */
  env?: string[];
  /** Programs to start. */
  run?: string[];
  /** Facts about the machine, as of `--allow-sys`. */
  sys?: string[];
  /** Parts of the project to read, relative to its root. Default: all of it. */
  project?: readonly string[];
}

/** A program of the user's that the launcher starts in place of the command line itself. */
export interface UserScript {
  /** Absolute path. */
  path: string;
  /** Its arguments. */
  args: string[];
  /** Its working directory. */
  cwd: string;
}

/** Parsed flags of one call. */
export type Flags = Record<string, unknown>;

/** One parsed call of a command. */
export interface Call {
  /** Positional arguments. */
  args: string[];
  /** Declared flags in camelCase. */
  flags: Flags;
  /** Arguments that the command did not declare: options of methods. */
  rest: string[];
  /** What the program was told that the call needs; missing in the launcher. */
  granted?: Grants;
}

/** One command of `kvf`. */
export interface CommandSpec {
  /** Words that call it, for instance `["eval", "needle"]`. */
  path: string[];
  /** Adds arguments, flags, help and examples to a bare commander command. */
  declare(command: Command): void;
  /** True when flags of methods (`--budget`, `--pool-width`, ...) are accepted as well. */
  methodFlags?: boolean;
  /**
   * Fields of the one object that `--json` prints, and what they hold. A name that ends in `?` is not always there. The
   * flag itself comes with every command.
   */
  json: Readonly<Record<string, string>>;
  /** What the call needs. */
  grants(call: Call): Grants;
  /**
   * What the program may touch while it is asked, with `--print-grants`, what the call needs: for commands whose needs
   * stand in a file. The answer adds files, the library and its device to {@linkcode grants}; programs and facts about the
   * machine stand there alone, as a file may be a program itself.
   */
  probe?(call: Call): Grants;
  /** Names a script of the user's to run instead of `run`; `absolute` resolves a path against the caller's folder. */
  script?(call: Call, absolute: (path: string) => string): UserScript;
  /** Does the work; resolves to the exit status. */
  run(call: Call): Promise<number>;
}

/** A wrong command line: printed without a stack, exit status 2. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** The user, or the system, asked the program to stop: told without a stack, exit status 130. */
export class StoppedError extends Error {
  override name = "StoppedError";
}

/** The string value of a flag, or undefined. */
export function text(flags: Flags, name: string): string | undefined {
  const value = flags[name];
  return typeof value === "string" ? value : undefined;
}

/** The paths among some values: everything that is not undefined. */
export function paths(...values: (string | undefined)[]): string[] {
  return values.filter((value): value is string => value !== undefined);
}

/** A file that is written aside and then renamed. */
export function outputFile(path: string | undefined): string[] {
  return path === undefined ? [] : [path, `${path}.tmp`];
}

/** Method names that are files: they must be read. */
export function methodPaths(methods: string | undefined): string[] {
  return (methods ?? "").split(",").filter((name) => /[./\\]/.test(name));
}

/** Files that options of methods name: the values of flags that end in `-file`. */
export function optionFiles(rest: readonly string[]): string[] {
  return rest.flatMap((argument, i) => {
    const [flag = "", ...value] = argument.split("=");
    if (!flag.startsWith("--") || !flag.endsWith("-file")) return [];
    return paths(value.length > 0 ? value.join("=") : rest[i + 1]);
  });
}
