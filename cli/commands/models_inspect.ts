import { type CommandSpec, paths } from "../spec.ts";

/** `kvf models inspect`: what a model folder holds. */
export const modelsInspect: CommandSpec = {
  path: ["models", "inspect"],
  declare(command) {
    command
      .description(
        "Check a model folder and print its shape, sizes and cache bytes per token",
      )
      .argument("<dir>", "Hugging Face model folder")
      .option("--json", "print one JSON object", false)
      .addHelpText(
        "after",
        "\nExample:\n  kvf models inspect models/needle-6m",
      );
  },
  grants({ args }) {
    return { read: paths(args[0]) };
  },
  run: async (call) =>
    (await import("../actions/models_inspect.ts")).modelsInspectAction(call),
};
