/**
 * Stand-in for `@std/cli/parse-args` where JSR cannot be reached, over the npm package minimist, whose option names
 * the real parser keeps. Map the import to `jsr:@std/cli@^1/parse-args` to use the real package.
 *
 * @module
 */
import minimist from "minimist";

/** The options that the project uses. */
export interface ParseOptions {
  /** Names that are always strings. */
  string?: string[];
  /** Names that are always booleans. */
  boolean?: string[];
  /** Other names of an option. */
  alias?: Record<string, string | string[]>;
  /** Values of options that were not given. */
  default?: Record<string, unknown>;
  /** Called for each unknown argument; return false to leave it out. */
  unknown?: (arg: string) => unknown;
}

/** Parsed arguments; `_` holds the positional ones. */
export type Args = { _: (string | number)[]; [name: string]: unknown };

/** Parses command-line arguments. */
export function parseArgs(args: string[], options: ParseOptions = {}): Args {
  const { unknown, ...rest } = options;
  return minimist(args, {
    ...rest,
    ...(unknown
      ? { unknown: (arg: string): boolean => unknown(arg) !== false }
      : {}),
  }) as Args;
}
