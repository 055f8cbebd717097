import { Option } from "@commander-js/extra-typings";
import {
  type CommandSpec,
  methodPaths,
  outputFile,
  paths,
  text,
} from "../spec.ts";
import { granularityFlag, integer, real } from "./_shared.ts";

/** `kvf apply`: run a method on recorded tensors. */
export const apply: CommandSpec = {
  path: ["apply"],
  methodFlags: true,
  declare(command) {
    command
      .description(
        "Run a method on recorded query, key and value tensors, without a model",
      )
      .requiredOption(
        "--method <name>",
        "a method's name or a file that exports one",
      )
      .option("--options <json>", "the method's options as a JSON object", "{}")
      .requiredOption(
        "--input <file>",
        "safetensors file with the tensors (float, rotation applied)",
      )
      .option("--q <name>", "queries [queryHeads, tokens, headDim]", "q")
      .option("--k <name>", "keys [kvHeads, tokens, headDim]", "k")
      .option("--v <name>", "values [kvHeads, tokens, headDim]", "v")
      .option(
        "--lower-k <name>",
        "keys of the layer before, for methods that act on neighbouring layers",
      )
      .option("--lower-v <name>", "values of the layer before")
      .addOption(
        new Option(
          "--rope-theta <base>",
          "base of the keys' rotation, for methods that undo it",
        ).argParser(real(1)),
      )
      .addOption(
        new Option("--layer <i>", "layer that the tensors stand for").argParser(
          integer(0),
        ).default(0),
      )
      .addOption(
        new Option("--layers <n>", "layers of the model they come from")
          .argParser(integer(1)).default(1),
      )
      .option("--output <file>", "write the kept rows to a safetensors file");
    granularityFlag(command);
    command.addHelpText(
      "after",
      `
Example:
  kvf apply --method snapkv --options '{"budget":64}' --input qkv.safetensors --json
  kvf apply --method minicache --first-share 0 --input two.safetensors \\
    --lower-k k0 --lower-v v0 --q q1 --k k1 --v v1 --layer 1 --layers 2`,
    );
  },
  json: {
    method: "name of the method",
    options: "its options, resolved",
    rows: "positions of the kept rows, [stored heads][rows]",
  },
  grants({ flags }) {
    return {
      read: paths(text(flags, "input"), ...methodPaths(text(flags, "method"))),
      write: outputFile(text(flags, "output")),
      sys: ["systemMemoryInfo"],
      native: true,
    };
  },
  run: async (call) => (await import("../actions/apply.ts")).applyAction(call),
};
