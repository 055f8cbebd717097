import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, methodPaths, paths, text } from "../spec.ts";
import {
  deviceOf,
  granularityFlag,
  integer,
  integers,
  modelFlags,
} from "./_shared.ts";

/** `kvf bench`: prefill and decode times, bytes, bandwidth. */
export const bench: CommandSpec = {
  path: ["bench"],
  methodFlags: true,
  declare(command) {
    command.description(
      "Time to first token, decode speed, bytes and the share of read bandwidth, with their spread",
    );
    modelFlags(command, false);
    command
      .option(
        "--random-weights <config.json>",
        "a shape instead of a model: random weights",
      )
      .option("--method <names>", "methods, comma-separated", "fullkv")
      .addOption(
        new Option("--budget <n>", "rows per layer and head, comma-separated")
          .argParser(integers(1)),
      )
      .addOption(
        new Option("--lengths <n>", "prompt lengths in tokens").argParser(
          integers(1),
        ).default([2048], "2048"),
      )
      .addOption(
        new Option("--batch <n>", "sequences that decode together").argParser(
          integer(1),
        ).default(1),
      )
      .addOption(
        new Option("--new-tokens <n>", "tokens to decode").argParser(integer(2))
          .default(64),
      )
      .addOption(
        new Option("--repeats <n>", "repetitions; the median is reported")
          .argParser(integer(1)).default(5),
      );
    granularityFlag(command);
    command.addHelpText(
      "after",
      `
Example:
  kvf bench --model models/needle-6m --method fullkv,snapkv --budget 256 --lengths 2048,4096`,
    );
  },
  json: {
    device: "kind, name, threads",
    readBandwidth: "bytes per second that this machine reads",
    weightBytes: "bytes of the weights in memory",
    dtype: "type of the weights in memory",
    cacheDtype: "type of the cache's rows",
    repeats: "repetitions of each measurement",
    newTokens: "steps of each repetition",
    rows:
      "a configuration and length each: milliseconds of prefill and step, bytes",
  },
  grants({ flags }) {
    return {
      read: paths(
        text(flags, "model"),
        text(flags, "randomWeights"),
        ...methodPaths(text(flags, "method")),
      ),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) => (await import("../actions/bench.ts")).benchAction(call),
};
