import type { CommandSpec } from "../spec.ts";

/** `kvf completions`: a script that teaches a shell the command line. */
export const completions: CommandSpec = {
  path: ["completions"],
  declare(command) {
    command
      .description("Print a completion script for bash, zsh or fish")
      .argument("<shell>", "bash, zsh or fish")
      .option(
        "--as <command>",
        "the command to complete, for instance an alias of yours",
        "kvf",
      )
      .addHelpText(
        "after",
        `
Example:
  alias kvf='deno task -q --config /path/to/project/deno.json kvf'
  source <(kvf completions bash)`,
      );
  },
  json: {
    shell: "bash, zsh or fish",
    command: "the command to complete",
    script: "the script",
  },
  grants: () => ({}),
  run: async (call) =>
    (await import("../actions/completions.ts")).completionsAction(call),
};
