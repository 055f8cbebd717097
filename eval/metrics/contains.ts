/**
 * Exact match by containment: the score of this project's own needle test.
 *
 * @module
 */
import { normalizeEnglish } from "./qa_f1.ts";

/** Letters of scripts written with spaces, and digits: where two of them meet there is no word border. */
const JOINED = /[\p{L}\p{N}_]/u;
const UNSPACED =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;

function joins(left: string | undefined, right: string | undefined): boolean {
  return [left, right].every((char) =>
    char !== undefined && JOINED.test(char) && !UNSPACED.test(char)
  );
}

/**
 * 1 if the normalised prediction holds a normalised answer as whole words, else 0.
 *
 * Both sides are normalised as for question answering (lower case, no punctuation, no articles). Whole words matter
 * for numbers: 4821 is not found in 94821. Scripts without spaces match anywhere. An answer that is empty once
 * normalised is never found.
 */
export function contains(prediction: string, answers: string[]): number {
  const text = [...normalizeEnglish(prediction)];
  const found = answers.some((answer) => {
    const wanted = [...normalizeEnglish(answer)];
    if (wanted.length === 0) return false;
    for (let i = 0; i + wanted.length <= text.length; i++) {
      if (
        wanted.every((char, k) => char === text[i + k]) &&
        !joins(text[i - 1], wanted[0]) &&
        !joins(wanted.at(-1), text[i + wanted.length])
      ) {
        return true;
      }
    }
    return false;
  });
  return found ? 1 : 0;
}
