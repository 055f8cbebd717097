// deno-lint-ignore-file no-console -- the command line prints
/**
 * The command tree of `kvf`: one table, turned into a commander program.
 *
 * @module
 */
import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import config from "../deno.json" with { type: "json" };
import { apply } from "./commands/apply.ts";
import { bench } from "./commands/bench.ts";
import { checkMethod } from "./commands/check_method.ts";
import { completions } from "./commands/completions.ts";
import { doctor } from "./commands/doctor.ts";
import { evalLongbench } from "./commands/eval_longbench.ts";
import { evalNeedle } from "./commands/eval_needle.ts";
import { evalRuler } from "./commands/eval_ruler.ts";
import { methods } from "./commands/methods.ts";
import { modelsHeads } from "./commands/models_heads.ts";
import { modelsInspect } from "./commands/models_inspect.ts";
import { newMethod } from "./commands/new_method.ts";
import { replay } from "./commands/replay.ts";
import { report } from "./commands/report.ts";
import { run } from "./commands/run.ts";
import { sandbox } from "./commands/sandbox.ts";
import { searchPatterns } from "./commands/search_patterns.ts";
import { sweep } from "./commands/sweep.ts";
import { view } from "./commands/view.ts";
import { type Call, type CommandSpec, type Flags, UsageError } from "./spec.ts";

/** All commands. */
export const COMMANDS: readonly CommandSpec[] = [
  run,
  apply,
  evalNeedle,
  evalLongbench,
  evalRuler,
  sweep,
  replay,
  report,
  view,
  methods,
  newMethod,
  checkMethod,
  searchPatterns,
  modelsInspect,
  modelsHeads,
  bench,
  doctor,
  sandbox,
  completions,
];

const GROUPS: Record<string, string> = {
  eval: "Run a benchmark",
  models: "Look at model folders",
};

/** What `--json` prints, for the help. */
function jsonHelp({ json }: CommandSpec): string {
  const width = Math.max(...Object.keys(json).map((name) => name.length));
  return [
    "Fields of --json:",
    ...Object.entries(json).map(([name, about]) =>
      `  ${name.padEnd(width)}  ${about}`
    ),
  ].join("\n");
}

/** Refuses flags and arguments that name nothing, as an empty path would stand for the working folder. */
function refuseEmptyPaths(command: CommandUnknownOpts): void {
  const values = command.opts();
  const empty = command.options.find((option) =>
    /<(dir|files?|path)>/.test(option.flags) &&
    values[option.attributeName()] === ""
  );
  const name = empty?.long ??
    command.registeredArguments.find((_, i) => command.args[i] === "")?.name();
  if (name === undefined) return;
  throw new UsageError(`Cannot run as ${name} must not be empty: it is ""`);
}

/** Builds the program; `act` gets the command that was called and its parsed flags. */
export function createProgram(
  act: (spec: CommandSpec, call: Call) => void | Promise<void>,
): Command {
  const program = new Command("kvf")
    .version(config.version, "-V, --version", "print the version")
    .description("Run, compare and invent KV-cache compression methods")
    .showHelpAfterError("(try --help)")
    // Help has no colours; asking whether it may would read environment variables.
    .configureOutput({
      getOutHasColors: () => false,
      getErrHasColors: () => false,
      writeErr: (text) => console.error(text.trimEnd()),
    })
    .exitOverride();
  const groups = new Map<string, Command>();
  for (const spec of COMMANDS) {
    const [first, second] = spec.path;
    if (first === undefined) continue;
    let parent: Command = program;
    if (second !== undefined) {
      parent = groups.get(first) ??
        program.command(first).description(GROUPS[first] ?? first)
          .exitOverride();
      groups.set(first, parent);
    }
    const command = parent.command(second ?? first).exitOverride()
      .showHelpAfterError("(try --help)");
    spec.declare(command);
    command.option("--json", "print one JSON object", false)
      .addHelpText("after", `\n${jsonHelp(spec)}`);
    if (spec.methodFlags) command.allowUnknownOption().allowExcessArguments();
    command.action(async () => {
      refuseEmptyPaths(command as unknown as CommandUnknownOpts);
      // From the first flag on that was not declared, everything is an option of a method.
      const flag = command.args.findIndex((word) => word.startsWith("-"));
      const declared = Math.min(
        command.registeredArguments.length,
        flag < 0 ? Infinity : flag,
      );
      const args = spec.methodFlags
        ? command.args.slice(0, declared)
        : command.args;
      const rest = spec.methodFlags ? command.args.slice(declared) : [];
      await act(spec, { args, flags: command.opts() as Flags, rest });
    });
  }
  return program;
}
