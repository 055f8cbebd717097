/**
 * Token F1 of question answering, English and Chinese, as in LongBench.
 *
 * @module
 */
import { cutChinese } from "./chinese.ts";
import {
  countItems,
  overlap,
  removeSpaces,
  splitSpaces,
} from "./_python_text.ts";

const ASCII_PUNCTUATION = /[!-/:-@[-`{-~]/g;

/** LongBench's set. U+300A and U+FF0E are missing from it, the closing U+300B is in. */
const CHINESE_PUNCTUATION =
  /[\uff01\uff1f\uff61\u3002\uff02-\uff0d\uff0f\uff1a-\uff1e\uff20\uff3b-\uff40\uff5b-\uff60\uff62-\uff64\u3001\u3003\u300b-\u3011\u3014-\u301f\u3030\u303e\u303f\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f]/g;

const ARTICLES = new Set(["a", "an", "the"]);

/**
 * Lower case, no ASCII punctuation, no articles, single spaces.
 *
 * Punctuation is deleted and not replaced, so hyphenated words fuse; an article is a whole run of word characters.
 */
export function normalizeEnglish(text: string): string {
  const plain = text.toLowerCase().replace(ASCII_PUNCTUATION, "");
  const bare = plain.replace(
    /[\p{L}\p{N}_]+/gu,
    (word) => ARTICLES.has(word) ? " " : word,
  );
  return splitSpaces(bare).join(" ");
}

/** Lower case, without white space and without ASCII and Chinese punctuation. */
export function normalizeChinese(text: string): string {
  const plain = text.toLowerCase()
    .replace(ASCII_PUNCTUATION, "").replace(CHINESE_PUNCTUATION, "");
  return removeSpaces(plain);
}

/** F1 of two bags of tokens; 0 when they share none. */
export function tokenF1(prediction: string[], answer: string[]): number {
  const same = overlap(countItems(prediction), countItems(answer));
  if (same === 0) return 0;
  const precision = same / prediction.length;
  const recall = same / answer.length;
  return (2 * precision * recall) / (precision + recall);
}

/** LongBench's `qa_f1_score` for one answer. */
export function qaF1(prediction: string, answer: string): number {
  return tokenF1(
    splitSpaces(normalizeEnglish(prediction)),
    splitSpaces(normalizeEnglish(answer)),
  );
}

/** LongBench's `qa_f1_zh_score` for one answer. */
export function qaF1Chinese(prediction: string, answer: string): number {
  const tokens = (text: string) =>
    cutChinese(text).map(normalizeChinese).filter((token) => token !== "");
  return tokenF1(tokens(prediction), tokens(answer));
}
