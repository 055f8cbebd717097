// deno-lint-ignore-file no-console -- the command line prints
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { METHODS, optionFlags } from "../../methods/mod.ts";
import { createProgram } from "../program.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { printJson } from "./_runtime.ts";

/** Words that may follow a chain of verbs, and words that may follow a flag. */
interface Words {
  /** Verbs and flags by the verbs before them, for instance `"eval needle"`. */
  after: Map<string, string[]>;
  /** Values by flag; a flag that takes a path or a free value is absent. */
  values: Map<string, string[]>;
}

/** `kvf completions`. */
export function completionsAction({ args, flags }: Call): Promise<number> {
  const shell = args[0]!;
  const write = WRITERS[shell];
  if (write === undefined) {
    throw new UsageError(
      `Cannot print completions as the shell must be bash, zsh or fish: it is "${shell}"`,
    );
  }
  const command = text(flags, "as") ?? "kvf";
  if (!/^[\w.-]+$/.test(command)) {
    throw new UsageError(
      `Cannot print completions as --as must be a plain command name: it is "${command}"`,
    );
  }
  const script = write(collect(), command);
  if (flags.json) printJson({ shell, command, script });
  else console.log(script);
  return Promise.resolve(0);
}

function collect(): Words {
  const words: Words = { after: new Map(), values: new Map() };
  words.values.set("--method", [...METHODS.keys()]);
  const methodFlags = [
    ...new Set(
      [...METHODS.values()].flatMap((method) =>
        optionFlags(method).map(({ flag }) => flag)
      ),
    ),
  ];
  const walk = (command: CommandUnknownOpts, chain: string[]) => {
    const next = command.options.flatMap(({ long }) => long ? [long] : []);
    for (const option of command.options) {
      if (option.long && option.argChoices) {
        words.values.set(option.long, [...option.argChoices]);
      }
    }
    for (const child of command.commands) {
      next.push(child.name());
      walk(child, [...chain, child.name()]);
    }
    if (next.includes("--method")) next.push(...methodFlags);
    words.after.set(chain.join(" "), [...next, "--help"]);
  };
  walk(createProgram(() => {}) as unknown as CommandUnknownOpts, []);
  return words;
}

const WRITERS: Record<string, (words: Words, command: string) => string> = {
  bash: (words, command) =>
    `_${identifier(command)}() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} chain= word
  case "$prev" in
${
      cases(
        words.values,
        (list) => `COMPREPLY=($(compgen -W "${list}" -- "$cur")); return ;;`,
      )
    }
  esac
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) break ;; esac
    chain=\${chain:+$chain }$word
  done
  case "$chain" in
${
      cases(
        words.after,
        (list) => `COMPREPLY=($(compgen -W "${list}" -- "$cur")) ;;`,
      )
    }
  esac
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$cur"))
}
complete -o filenames -F _${identifier(command)} ${command}`,
  zsh: (words, command) =>
    `autoload -U +X bashcompinit && bashcompinit\n${
      WRITERS.bash!(words, command)
    }`,
  fish: (words, command) =>
    [
      `function __${identifier(command)}_chain`,
      "  set -l chain",
      "  for word in (commandline -opc)[2..]",
      "    string match -q -- '-*' $word; and break",
      "    set chain $chain $word",
      "  end",
      "  string join ' ' $chain",
      "end",
      ...[...words.after].map(([chain, list]) =>
        `complete -c ${command} -n 'test "$(__${
          identifier(command)
        }_chain)" = "${chain}"' -a '${list.join(" ")}'`
      ),
      ...[...words.values].map(([flag, list]) =>
        `complete -c ${command} -l ${flag.slice(2)} -x -a '${list.join(" ")}'`
      ),
    ].join("\n"),
};

function cases(
  map: Map<string, string[]>,
  act: (list: string) => string,
): string {
  return [...map].map(([key, list]) => `    "${key}") ${act(list.join(" "))}`)
    .join("\n");
}

function identifier(command: string): string {
  return command.replace(/\W/g, "_");
}
