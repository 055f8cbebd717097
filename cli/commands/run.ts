import { Option } from "@commander-js/extra-typings";
import {
  type CommandSpec,
  methodPaths,
  outputFile,
  paths,
  text,
} from "../spec.ts";
import {
  deviceOf,
  granularityFlag,
  integer,
  integers,
  modelFlags,
  real,
} from "./_shared.ts";

/** `kvf run`: generate from one prompt with one method. */
export const run: CommandSpec = {
  path: ["run"],
  methodFlags: true,
  declare(command) {
    command.description("Generate from a prompt with a compression method");
    modelFlags(command);
    command
      .option("--prompt <text>", "the prompt")
      .option("--prompt-file <file>", "a file with the prompt")
      .addOption(
        new Option(
          "--prompt-ids <ids>",
          "the prompt as token ids, for instance 1,2,3",
        ).argParser(integers(0)),
      )
      .option("--chat", "wrap the prompt in the model's chat template", false)
      .option(
        "--method <name>",
        "a method's name or a file that exports one",
        "fullkv",
      )
      .addOption(
        new Option("--max-new-tokens <n>", "tokens to generate at most")
          .argParser(integer(1, 2 ** 24)).default(128),
      )
      .addOption(
        new Option("--temperature <t>", "0 is greedy").argParser(real(0))
          .default(0),
      )
      .addOption(
        new Option(
          "--top-k <n>",
          "sample from the n most likely tokens; 0: all",
        ).argParser(integer(0)).default(0),
      )
      .addOption(
        new Option(
          "--top-p <p>",
          "sample from the smallest set of that probability",
        ).argParser(real(0, 1)).default(1),
      )
      .addOption(
        new Option("--seed <n>", "seed of the draws").argParser(integer(0))
          .default(0),
      )
      .option("--ignore-eos", "do not stop at stop tokens", false)
      .option(
        "--dump-logits <file>",
        "write the logits of every new token to a safetensors file",
      );
    granularityFlag(command);
    command.addHelpText(
      "after",
      `
Options of the method are flags as well: see kvf methods.

Example:
  kvf run --model models/needle-6m --prompt-file prompt.txt --method snapkv --budget 128`,
    );
  },
  json: {
    model: "the model folder, as given",
    method: "name of the method",
    options: "its options, resolved",
    granularity: "what one stored head is",
    promptTokens: "tokens of the prompt",
    tokens: "ids of the new tokens",
    stopReason: "why generation ended",
    text: "the new tokens in words; null without a tokenizer",
    cache: "rows of every layer and stored head, bytes promised and resident",
    timing: "milliseconds of each phase",
  },
  grants({ flags }) {
    return {
      read: paths(
        text(flags, "model"),
        text(flags, "promptFile"),
        ...methodPaths(text(flags, "method")),
      ),
      write: outputFile(text(flags, "dumpLogits")),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) => (await import("../actions/run.ts")).runAction(call),
};
