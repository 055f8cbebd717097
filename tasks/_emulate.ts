/**
 * Rewrites CUDA sources into plain C++ for the emulator of `csrc/emulator`: launches become calls, dynamic shared memory
 * becomes a pointer. Everything else is done by the emulator's headers.
 *
 * @module
 */

const OPEN: Record<string, string> = { "(": ")", "<": ">" };

/** Index behind the bracket that closes the one at `start`. */
function closing(text: string, start: number): number {
  const open = text[start]!, close = OPEN[open]!;
  let depth = 0;
  for (let i = start; i < text.length; i++) {
    if (text[i] === open) depth++;
    if (text[i] === close && --depth === 0) return i + 1;
  }
  throw new Error(
    `Cannot rewrite a launch as its "${open}" is not closed: ${
      text.slice(start, start + 60)
    }`,
  );
}

/** Index of the first character of the kernel's name, whose template arguments and name end before `end`. */
function calleeStart(text: string, end: number): number {
  let at = end;
  if (text[at - 1] === ">") {
    let depth = 0;
    do {
      at--;
      if (text[at] === ">") depth++;
      if (text[at] === "<") depth--;
    } while (depth > 0);
  }
  while (/\w/.test(text[at - 1]!)) at--;
  return at;
}

/** C++ text of a CUDA source. */
export function emulate(source: string): string {
  let text = source.replace(
    /extern __shared__ ([\w ]+?) (\w+)\[\];/g,
    "$1 *$2 = ($1 *)emulator::dynamic_shared();",
  );
  for (let at = text.indexOf("<<<"); at >= 0; at = text.indexOf("<<<")) {
    const start = calleeStart(text, at);
    const kernel = text.slice(start, at);
    const configEnd = text.indexOf(">>>", at);
    const config = text.slice(at + 3, configEnd);
    const end = closing(text, configEnd + 3);
    const args = text.slice(configEnd + 4, end - 1).trim();
    text = text.slice(0, start) +
      `emulator::launcher(${config}).run(${kernel}${args ? `, ${args}` : ""})` +
      text.slice(end);
  }
  return text;
}
