import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, outputFile, paths, text } from "../spec.ts";
import { deviceOf, integers, modelFlags, real } from "./_shared.ts";

/** `kvf search-patterns`: sparse patterns for a model, found on prompts. */
export const searchPatterns: CommandSpec = {
  path: ["search-patterns"],
  declare(command) {
    command.description(
      "Find a sparse attention pattern for each head, for --method minference",
    );
    modelFlags(command);
    command
      .option(
        "--prompt-file <files>",
        "files with prompts, separated by commas; as long as the prompts to come",
      )
      .addOption(
        new Option("--prompt-ids <ids>", "one prompt as token ids")
          .argParser(integers(0)),
      )
      .addOption(
        new Option(
          "--recall <share>",
          "attention probability that a head should keep",
        ).argParser(real(0, 1)).default(0.95),
      )
      .requiredOption("--out <file>", "where the patterns go")
      .addHelpText(
        "after",
        `
Example:
  kvf search-patterns --model models/needle-6m --prompt-file long.txt --out patterns.json
  kvf run --model models/needle-6m --prompt-file other.txt --method minference --pattern-file patterns.json`,
      );
  },
  json: {
    patterns:
      "pattern, share of probability kept and of pairs computed, [layers][heads]",
    file: "the file that was written",
  },
  grants({ flags }) {
    return {
      read: paths(
        text(flags, "model"),
        ...(text(flags, "promptFile") ?? "").split(",").filter(Boolean),
      ),
      write: outputFile(text(flags, "out")),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) =>
    (await import("../actions/search_patterns.ts")).searchPatternsAction(call),
};
