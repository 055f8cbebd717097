import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, paths, text } from "../spec.ts";
import { integer, real } from "./_shared.ts";

/** `kvf report`: tables and pictures from the records of a results folder. */
export const report: CommandSpec = {
  path: ["report"],
  declare(command) {
    command.description("Tables and pictures from the records of a folder")
      .argument("<dir>", "results folder")
      .option(
        "--out <dir>",
        "where the report goes (default: report/ in the results folder)",
      )
      .option(
        "--reference <name>",
        "configuration to compare with, as named in the tables (default: fullkv)",
      )
      .option("--pairs", "compare every pair of configurations too", false)
      .addOption(
        new Option(
          "--min-effect <points>",
          "tell how many examples would show a difference of so many points (of 100)",
        ).argParser(real(0.01, 100)),
      )
      .addOption(
        new Option("--level <share>", "coverage of intervals")
          .argParser(real(0.5, 0.9999)).default(0.95),
      )
      .addOption(
        new Option("--resamples <n>", "draws of the bootstrap")
          .argParser(integer(100)).default(5000),
      )
      .option(
        "--partial",
        "report on what is there: without examples that some configuration has no record of, and of runs that are not finished",
        false,
      )
      .option("--commit <id>", "take only records of this commit")
      .option(
        "--html",
        "write report.html too: tables to sort, pictures with hints, and the views kept in the folder",
        false,
      );
    command.addHelpText(
      "after",
      `
A missing record makes the report fail unless --partial is given.

Example:
  kvf report results/quickstart --min-effect 2`,
    );
  },
  json: {
    sections:
      "what may be compared with each other: configurations with scores, intervals, differences and costs",
    files: "what was written",
  },
  grants({ args, flags }) {
    const dir = args[0] ?? ".";
    const out = text(flags, "out") ?? `${dir}/report`;
    return { read: paths(dir), write: [out] };
  },
  run: async (call) =>
    (await import("../actions/report.ts")).reportAction(call),
};
