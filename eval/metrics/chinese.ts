/**
 * Chinese word segmentation, equal to Python's jieba 0.42.1 in accurate mode with its HMM.
 *
 * The dictionary comes compiled to WebAssembly and is loaded at the first call, never at import.
 * Permissions: read of `node_modules/jieba-wasm` (one file), only when Chinese text is cut.
 *
 * @module
 */
import { cut, initSync } from "jieba-wasm/web";

/**
 * Python's jieba cuts only within blocks of Han characters up to U+9FD5, ASCII letters, digits and a few signs; every
 * other character is a token, and so is `\r\n`. The Rust port counts more characters as Han.
 */
const PIECES = /[\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+|\r\n|[^]/gu;
const BLOCK = /^[\u4e00-\u9fd5a-zA-Z0-9+#&._%-]/u;

/**
 * Within a block the two disagree where a letter or digit is followed by `-+#&_` and a digit (`GPT-4`), and where a
 * percent sign is followed by a digit. Cutting there first makes them agree.
 */
const BORDER = /(?<=[a-zA-Z0-9])(?=[-+#&_][0-9])|(?<=[a-zA-Z0-9]%)(?=[0-9])/u;

let loaded = false;

function load(): void {
  const wasm = new URL(
    "jieba_rs_wasm_bg.wasm",
    import.meta.resolve("jieba-wasm/web"),
  );
  initSync({ module: Deno.readFileSync(wasm) });
  loaded = true;
}

/**
 * Words of a Chinese text; joined they give the text again.
 *
 * @param text Any text.
 * @returns The tokens in order, white space and punctuation included.
 */
export function cutChinese(text: string): string[] {
  if (!loaded) load();
  return (text.match(PIECES) ?? []).flatMap((piece) =>
    BLOCK.test(piece)
      ? piece.split(BORDER).flatMap((part) => cut(part, true))
      : [piece]
  );
}
