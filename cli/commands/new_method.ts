import { type CommandSpec, outputFile, text } from "../spec.ts";

/** Where a new method's file goes. */
export function methodFile(
  name: string | undefined,
  out: string | undefined,
): string {
  return out ?? `${name}.ts`;
}

/** `kvf new-method`: a first version of a method of one's own. */
export const newMethod: CommandSpec = {
  path: ["new-method"],
  declare(command) {
    command
      .description("Write a working method to start from, in a file of its own")
      .argument("<name>", "its name: lower case, letters, digits, . _ -")
      .option("--out <file>", "the file (default: NAME.ts)")
      .addHelpText(
        "after",
        `
Example:
  kvf new-method mine && kvf check-method ./mine.ts
  kvf eval needle --model models/needle-6m --method snapkv,./mine.ts --budget 64`,
      );
  },
  json: {
    file: "the file that was written",
    method: "name of the method",
  },
  grants({ args, flags }) {
    return { write: outputFile(methodFile(args[0], text(flags, "out"))) };
  },
  run: async (call) =>
    (await import("../actions/new_method.ts")).newMethodAction(call),
};
