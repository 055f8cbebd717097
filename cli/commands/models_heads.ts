import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, outputFile, paths, text } from "../spec.ts";
import { deviceOf, integer, integers, modelFlags } from "./_shared.ts";

/** `kvf models heads`: scores of a model's heads, for HeadKV. */
export const modelsHeads: CommandSpec = {
  path: ["models", "heads"],
  declare(command) {
    command.description(
      "Score how much each head retrieves, for headkv and other budgets by table",
    );
    modelFlags(command);
    command
      .requiredOption("--out <file>", "JSON file that is written")
      .addOption(
        new Option("--lengths <n>", "prompt lengths in tokens, comma-separated")
          .argParser(integers(64)).default([512, 1024, 2048], "512,1024,2048"),
      )
      .addOption(
        new Option("--depths <n>", "depths of the needle for each length")
          .argParser(integer(2)).default(10),
      )
      .addOption(
        // Not the seed of the benchmarks: heads should not be chosen by the examples that judge them.
        new Option("--seed <n>", "seed of the examples").argParser(integer(0))
          .default(1001),
      )
      .option("--quiet", "no progress bar", false)
      .addHelpText(
        "after",
        "\nExample:\n  kvf models heads --model models/needle-6m --out heads.json\n  kvf run --model models/needle-6m --method headkv --head-file heads.json --budget 64 --prompt ...",
      );
  },
  json: {
    heads: "number of heads",
    scores: "scores of each head",
    file: "the file that was written",
  },
  grants({ flags }) {
    return {
      read: paths(text(flags, "model")),
      write: outputFile(text(flags, "out")),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) =>
    (await import("../actions/models_heads.ts")).modelsHeadsAction(call),
};
