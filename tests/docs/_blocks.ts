/** Code blocks of Markdown files. */

/** One fenced block. */
export interface Block {
  /** File that holds it, relative to the project. */
  file: string;
  /** Line of its fence, from 1. */
  line: number;
  /** Language after the fence, for instance `sh`. */
  language: string;
  /** File name after the language, as in <code>```ts mine.ts</code>. */
  name?: string;
  /** What the comment before the block says it needs: `<!-- needs: a GPU -->`. */
  needs?: string;
  /** Its text. */
  text: string;
}

/** All fenced blocks of a text. */
export function blocksOf(file: string, text: string): Block[] {
  const blocks: Block[] = [];
  const lines = text.split("\n");
  let needs: string | undefined;
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i]!;
    const marker = /^<!-- needs: (.+) -->$/.exec(line);
    if (marker) {
      needs = marker[1]!;
      continue;
    }
    const fence = /^```(\S*)(?: (\S+))?$/.exec(line);
    if (!fence) {
      if (line.trim() !== "") needs = undefined;
      continue;
    }
    const end = lines.indexOf("```", i + 1);
    if (end < 0) {
      throw new SyntaxError(
        `Cannot read ${file} as line ${i + 1} opens a block without an end`,
      );
    }
    blocks.push({
      file,
      line: i + 1,
      language: fence[1]!,
      ...(fence[2] === undefined ? {} : { name: fence[2] }),
      ...(needs === undefined ? {} : { needs }),
      text: lines.slice(i + 1, end).join("\n"),
    });
    needs = undefined;
    i = end;
  }
  return blocks;
}

/** Commands of a shell block: one per line, a trailing backslash joins lines, comments are dropped. */
export function commandsOf(text: string): string[][] {
  return text.replaceAll(/\\\n\s*/g, " ").split("\n")
    .map(words).filter((command) => command.length > 0);
}

function words(line: string): string[] {
  const found: string[] = [];
  for (const [word] of line.matchAll(/(?:'[^']*'|"[^"]*"|[^\s'"])+/g)) {
    if (word.startsWith("#")) break;
    found.push(word.replaceAll(/'([^']*)'|"([^"]*)"/g, "$1$2"));
  }
  return found;
}
