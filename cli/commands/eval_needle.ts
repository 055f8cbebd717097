import { Option } from "@commander-js/extra-typings";
import type { CommandSpec } from "../spec.ts";
import {
  benchmarkFlags,
  evaluationGrants,
  granularityFlag,
  integer,
  integers,
  modelFlags,
  protocolFlags,
  real,
} from "./_shared.ts";

/** A number of depths, or a list of them. */
function depths(value: string): number | number[] {
  return value.includes(",")
    ? value.split(",").map(real(0, 100))
    : integer(2)(value);
}

/** `kvf eval needle`: the needle-in-a-haystack grid for several methods. */
export const evalNeedle: CommandSpec = {
  path: ["eval", "needle"],
  methodFlags: true,
  declare(command) {
    command.description(
      "Needle in a haystack: lengths x depths x methods x budgets",
    );
    modelFlags(command);
    benchmarkFlags(command, "results/needle");
    command
      .addOption(
        new Option("--lengths <n>", "prompt lengths in tokens, comma-separated")
          .argParser(integers(64)).default(
            [512, 1024, 2048],
            "512,1024,2048",
          ),
      )
      .addOption(
        new Option(
          "--depths <n>",
          "number of depths from 0 to 100 %, or the depths, comma-separated",
        ).argParser(depths).default(10 as number | number[]),
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
        "--answer-prefix <text>",
        "how the answer to a needle of your own begins",
      )
      .option(
        "--template <file>",
        "prompt of a needle of your own: a text with the slots {context} and {question}",
      )
      .addOption(
        new Option("--buffer <n>", "tokens kept free in every prompt")
          .argParser(integer(0)).default(0),
      )
      .addOption(
        new Option("--max-new-tokens <n>", "new tokens at most")
          .argParser(integer(1)).default(30),
      )
      .option("--no-stop-at-newline", "answers may have several lines")
      .addOption(
        new Option(
          "--score <kind>",
          "score of table and heat map: the answer occurs (match), or as KVCache-Factory stores (rouge1, there times ten) and draws (words) it; records hold all three",
        ).choices(["match", "rouge1", "words"] as const)
          .default("match" as const),
      );
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
  json: {
    rows:
      "a configuration each: score from 0 to 1, interval, bytes, milliseconds of a step",
    files: "what was written",
  },
  grants: (call) => evaluationGrants(call, ["haystack", "template"]),
  run: async (call) =>
    (await import("../actions/eval_needle.ts")).evalNeedleAction(call),
};
