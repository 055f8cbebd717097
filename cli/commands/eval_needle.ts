import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, methodPaths, paths, text } from "../spec.ts";
import {
  deviceOf,
  granularityFlag,
  integer,
  integers,
  modelFlags,
  protocolFlags,
} from "./_shared.ts";

/** `kvf eval needle`: the needle-in-a-haystack grid for several methods. */
export const evalNeedle: CommandSpec = {
  path: ["eval", "needle"],
  methodFlags: true,
  declare(command) {
    command.description(
      "Needle in a haystack: lengths x depths x methods x budgets",
    );
    modelFlags(command);
    command
      .option(
        "--method <names>",
        "methods, comma-separated: names or files",
        "fullkv,snapkv,streamingllm",
      )
      .addOption(
        new Option("--budget <n>", "rows per layer and head, comma-separated")
          .argParser(integers(1)),
      )
      .addOption(
        new Option("--lengths <n>", "prompt lengths in tokens, comma-separated")
          .argParser(integers(64)).default(
            [512, 1024, 2048],
            "512,1024,2048",
          ),
      )
      .addOption(
        new Option("--depths <n>", "number of depths from 0 to 100 %")
          .argParser(integer(2)).default(10),
      )
      .addOption(
        new Option("--examples <n>", "examples per cell").argParser(integer(1))
          .default(1),
      )
      .addOption(
        new Option("--seed <n>", "seed of the examples").argParser(integer(0))
          .default(42),
      )
      .option(
        "--haystack <dir>",
        "folder of .txt files to hide the needle in (default: generated text)",
      )
      .option(
        "--needle <text>",
        "the sentence to hide (default: a fresh one per example)",
      )
      .option("--question <text>", "what to ask for it")
      .option("--answer <text>", "the expected answer")
      .addOption(
        new Option("--spacing <kind>", "of the depths").choices(
          ["linear", "sigmoid"] as const,
        ).default("linear" as const),
      )
      .option(
        "--out <dir>",
        "results folder: records, table, pictures",
        "results/needle",
      )
      .option("--json", "print a JSON summary", false)
      .option("--quiet", "no progress bar", false);
    granularityFlag(command);
    protocolFlags(command, { truncate: "refuse", minNewTokens: 0 });
    command.addHelpText(
      "after",
      `
Options of methods are flags as well: see kvf methods. A run that was stopped goes on where it was.

Example:
  kvf eval needle --model models/needle-6m --method fullkv,snapkv --budget 64,128 --out results/mine`,
    );
  },
  grants({ flags }) {
    return {
      read: paths(
        text(flags, "model"),
        text(flags, "haystack"),
        ...methodPaths(text(flags, "method")),
      ),
      write: paths(text(flags, "out")),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) =>
    (await import("../actions/eval_needle.ts")).evalNeedleAction(call),
};
