import { InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { dirname, join } from "@std/path";
import {
  type CommandSpec,
  type Flags,
  methodPaths,
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

/** `none`, `all`, `some` or layers. */
function layersOf(value: string): string | number[] {
  if (["none", "all", "some"].includes(value)) return value;
  if (!/^\d+(,\d+)*$/.test(value)) {
    throw new InvalidArgumentError("must be none, all, some or layers");
  }
  return integers(0)(value);
}

/** The page of `--out`: a file that ends in .html, or view.html in a folder. */
export function pagePath(flags: Flags): string {
  const out = text(flags, "out") ?? ".";
  return out.endsWith(".html") ? out : join(out, "view.html");
}

/** `kvf view`: see on the text what methods keep. */
export const view: CommandSpec = {
  path: ["view"],
  methodFlags: true,
  declare(command) {
    command.description(
      "See what methods keep of a prompt: one HTML page to explore",
    );
    modelFlags(command);
    command
      .option("--prompt <text>", "the prompt")
      .option("--prompt-file <file>", "a file with the prompt")
      .addOption(
        new Option(
          "--needle <n>",
          "a needle in a haystack of n tokens in place of a prompt",
        ).argParser(integer(64)),
      )
      .addOption(
        new Option("--depth <percent>", "depth of that needle")
          .argParser(real(0, 100)).default(50),
      )
      .addOption(
        new Option("--seed <n>", "seed of that haystack").argParser(integer(0))
          .default(42),
      )
      .option("--chat", "wrap the prompt in the model's chat template", false)
      .option("--highlight <text>", "mark this text of the prompt")
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
        new Option("--max-new-tokens <n>", "tokens to generate at most")
          .argParser(integer(1)).default(16),
      )
      .addOption(
        new Option("--every <n>", "look into the caches every n new tokens")
          .argParser(integer(1)).default(1),
      )
      .addOption(
        new Option(
          "--score-window <n>",
          "last prompt queries whose attention is a token's score",
        ).argParser(integer(1)).default(32),
      )
      .addOption(
        new Option(
          "--attention <layers>",
          "layers whose attention is mapped: none, all, some (first, middle, last) or a list",
        ).argParser(layersOf).default("some"),
      )
      .addOption(
        new Option("--blocks <n>", "blocks of an attention map at most")
          .argParser(integer(2)).default(128),
      )
      .option(
        "--out <path>",
        "the page: a file that ends in .html, or a folder for view.html",
        "results/view",
      )
      .option(
        "--images",
        "write the attention maps as SVG and PNG beside the page, too",
        false,
      )
      .option(
        "--into <dir>",
        "keep the view in this results folder: its report will show it",
      )
      .option("--quiet", "no progress bar", false);
    granularityFlag(command);
    command.addHelpText(
      "after",
      `
Options of methods are flags as well: see kvf methods.

Example:
  kvf view --model models/needle-6m --needle 2048 --method fullkv,snapkv,streamingllm --budget 128 --out results/view`,
    );
  },
  json: {
    title: "what is looked at",
    configurations: "rows, bytes, share of the marked text kept, answer",
    files: "what was written",
  },
  grants({ flags }) {
    return {
      read: paths(
        text(flags, "model"),
        text(flags, "promptFile"),
        ...methodPaths(text(flags, "method")),
      ),
      write: paths(
        dirname(pagePath(flags)),
        text(flags, "into"),
      ),
      native: true,
      device: deviceOf(flags),
    };
  },
  run: async (call) => (await import("../actions/view.ts")).viewAction(call),
};
