import { type CommandSpec, methodPaths, paths, text } from "../spec.ts";

/** `kvf check-method`: what every method must hold. */
export const checkMethod: CommandSpec = {
  path: ["check-method"],
  methodFlags: true,
  declare(command) {
    command
      .description(
        "Check a method: budget, protected rows, true bytes, same answers",
      )
      .argument("<method>", "a file that exports a method, or a method's name")
      .option(
        "--model <dir>",
        "model folder (default: the bundled one, with random weights)",
      )
      .addHelpText(
        "after",
        `
Options of the method may be given as flags; the checks then run with them.

Example:
  kvf check-method ./mine.ts --budget-policy adaptive --merge weighted`,
      );
  },
  json: {
    method: "name of the method",
    given: "options that were given",
    results: "each check, whether it holds, and why not",
  },
  grants({ args, flags }) {
    return {
      read: paths(text(flags, "model"), ...methodPaths(args[0])),
      native: true,
    };
  },
  run: async (call) =>
    (await import("../actions/check_method.ts")).checkMethodAction(call),
};
