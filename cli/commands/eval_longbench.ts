import { Option } from "@commander-js/extra-typings";
import { LONGBENCH_PROTOCOL } from "../../eval/protocol.ts";
import type { CommandSpec } from "../spec.ts";
import {
  benchmarkFlags,
  evaluationGrants,
  granularityFlag,
  integer,
  modelFlags,
  protocolFlags,
} from "./_shared.ts";

/** `kvf eval longbench`: LongBench and LongBench-E on the user's download. */
export const evalLongbench: CommandSpec = {
  path: ["eval", "longbench"],
  methodFlags: true,
  declare(command) {
    command.description(
      "LongBench: data sets x methods x budgets, from your download of the data",
    );
    modelFlags(command);
    benchmarkFlags(command, "results/longbench");
    command
      .requiredOption(
        "--data <path>",
        "folder of the JSONL files, or the official data.zip",
      )
      .option(
        "--datasets <names>",
        "data sets, comma-separated; english: the 16 in English and code; all: 21",
        "english",
      )
      .option("--e", "the records of LongBench-E, with scores by length", false)
      .option(
        "--prompts <file>",
        "the official dataset2prompt.json (default: our own wording, and records say so)",
      )
      .option(
        "--answer-lengths <file>",
        "the official dataset2maxlen.json (default: the same numbers)",
      )
      .addOption(
        new Option("--limit <n>", "records of each data set at most")
          .argParser(integer(1)),
      )
      .addOption(
        new Option("--sample <how>", "which records a limit takes")
          .choices(["first", "random"] as const).default("first" as const),
      )
      .addOption(
        new Option("--seed <n>", "seed of a random sample")
          .argParser(integer(0)).default(42),
      )
      .addOption(
        new Option("--max-new-tokens <n>", "instead of the data set's number")
          .argParser(integer(1)),
      )
      .addOption(
        new Option(
          "--stop-at-newline <sets>",
          "data sets whose answers end before a newline; few-shot: all that are scored on their first line",
        ).choices(["samsum", "few-shot", "never"] as const)
          .default("samsum" as const),
      )
      .addOption(
        new Option("--first-line <sets>", "data sets scored on the first line")
          .choices(["few-shot", "always", "never"] as const)
          .default("few-shot" as const),
      )
      .addOption(
        new Option(
          "--similarity <kind>",
          "of code: as with python-Levenshtein (indel) or without (difflib)",
        ).choices(["indel", "difflib"] as const).default("indel" as const),
      )
      .addOption(
        new Option(
          "--rouge-depth <kind>",
          "python: 0 for sentences beyond Python's recursion limit",
        ).choices(["unlimited", "python"] as const)
          .default("unlimited" as const),
      );
    granularityFlag(command);
    protocolFlags(command, LONGBENCH_PROTOCOL);
    command.addHelpText(
      "after",
      `
Options of methods are flags as well: see kvf methods. A run that was stopped goes on where it was.

Example:
  kvf eval longbench --model DIR --data data.zip --prompts dataset2prompt.json --datasets hotpotqa,lcc --limit 20 --method fullkv,snapkv --budget 128`,
    );
  },
  json: {
    rows: "a configuration each, with scores by data set",
    "bins?": "scores by length of the prompt, with --bins",
    files: "what was written",
  },
  grants: (call) =>
    evaluationGrants(call, ["data", "prompts", "answerLengths"]),
  run: async (call) =>
    (await import("../actions/eval_longbench.ts")).evalLongbenchAction(call),
};
