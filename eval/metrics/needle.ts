/**
 * Two scores of the reference's needle test: the stored one (ROUGE-1 times ten) and the one of its heat map (words of
 * the expected answer that were said). They measure different things and neither is this project's default, which is
 * `contains`.
 *
 * @module
 */
import { porterStem } from "./porter.ts";
import { countItems, overlap, splitSpaces } from "./_python_text.ts";

/** Tokens of Google's `rouge_score` with stemming: runs of ASCII letters and digits, long ones stemmed. */
function rougeTokens(text: string): string[] {
  return text.toLowerCase().split(/[^a-z0-9]+/)
    .map((token) => token.length > 3 ? porterStem(token) : token)
    .filter((token) => token !== "");
}

/**
 * F measure of ROUGE-1 with stemming, 0 to 1; the reference stores ten times this number.
 *
 * @param response Generated text.
 * @param needle The whole hidden sentence. The reference compares with all of it though the response can only be its
 * end, so a perfect answer stays below 1.
 */
export function needleRouge1(response: string, needle: string): number {
  const said = rougeTokens(response);
  const target = rougeTokens(needle);
  const same = overlap(countItems(said), countItems(target));
  if (same === 0) return 0;
  const precision = same / said.length;
  const recall = same / target.length;
  return (2 * precision * recall) / (precision + recall);
}

/**
 * Share of the distinct words of the expected answer that occur in the response, letter case aside. Words are split at
 * white space, so punctuation belongs to them.
 */
export function needleWords(response: string, expected: string): number {
  const wanted = new Set(splitSpaces(expected.toLowerCase()));
  if (wanted.size === 0) return 0;
  const said = new Set(splitSpaces(response.toLowerCase()));
  return wanted.intersection(said).size / wanted.size;
}
