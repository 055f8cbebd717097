/**
 * Writes docs/commands.md: the help of every verb.
 *
 *     deno task docs:methods
 *
 * @module
 */
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { COMMANDS, createProgram } from "./program.ts";

/** The help of a verb, or of `kvf` itself for no words. */
export function helpOf(path: readonly string[]): string {
  let command = createProgram(() => {}) as unknown as CommandUnknownOpts;
  for (const word of path) {
    command = command.commands.find((child) => child.name() === word)!;
  }
  const lines: string[] = [];
  command.configureOutput({
    writeOut: (text) => lines.push(text),
    getOutHelpWidth: () => 100,
  });
  command.outputHelp();
  return lines.join("").replaceAll(/[ \t]+$/gm, "").trimEnd();
}

/** The page. */
export function commandsPage(): string {
  return `# The command line

Written from the code by \`deno task docs:methods\`: what \`kvf VERB --help\` prints.

With \`--json\` a verb prints one JSON object on standard output and nothing else; its
fields stand below its flags. Errors are told in words on standard error, with exit
status 2 for a wrong call or input and 1 for what failed; 130 means that the call was
interrupted. Off a terminal there are neither colours nor progress bars.

\`\`\`text
${helpOf([])}
\`\`\`
${
    COMMANDS.map(({ path }) => `
## kvf ${path.join(" ")}

\`\`\`text
${helpOf(path)}
\`\`\`
`).join("")
  }`;
}

if (import.meta.main) {
  Deno.writeTextFileSync(
    new URL("../docs/commands.md", import.meta.url),
    commandsPage(),
  );
}
