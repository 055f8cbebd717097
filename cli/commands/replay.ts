import { Option } from "@commander-js/extra-typings";
import type { CommandSpec } from "../spec.ts";
import { integer } from "./_shared.ts";

/** `kvf replay`: does records again and compares the tokens. */
export const replay: CommandSpec = {
  path: ["replay"],
  declare(command) {
    command.description(
      "Do records of a results folder again: the same tokens, or what differs",
    )
      .argument("<dir>", "results folder")
      .argument("[key]", "key of one record, or how it begins")
      .option("--model <dir>", "the model's folder, if it is elsewhere now")
      .addOption(
        new Option("--threads <n>", "CPU threads").argParser(integer(1)),
      )
      .addOption(
        new Option(
          "--limit <n>",
          "records to do again when no key is given, a sample of all",
        ).argParser(integer(1)).default(10),
      )
      .addOption(new Option("--print-grants").hideHelp().default(false));
    command.addHelpText(
      "after",
      `
Exit status 1 when a token differs. What was different about the run is listed either way.

Example:
  kvf replay results/quickstart --limit 3
  kvf replay results/quickstart 3fa9c1`,
    );
  },
  // How records were made stands in the folder, so the program is asked for what it needs with that alone to read.
  probe: ({ args }) => ({ read: args.slice(0, 1) }),
  json: {
    replayed: "records done again",
    same: "how many gave the same tokens",
    records: "key, whether the same, first difference, and facts that differ",
  },
  grants: () => ({}),
  run: async (call) =>
    (await import("../actions/replay.ts")).replayAction(call),
};
