/**
 * The clean-up of blanks that some tokenizers ask for after decoding, for whole texts and for streams.
 *
 * @module
 */

/** In this order, each over the whole text, as Hugging Face transformers does it. */
const RULES: readonly [from: string, to: string][] = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

/** Removes the blanks that the rules name. */
export function cleanUp(text: string): string {
  return RULES.reduce((t, [from, to]) => t.replaceAll(from, to), text);
}

/** Characters of the rules; no other one is ever part of a match, and only blanks are ever removed. */
const ACTIVE = new Set(" .?!,'ntmsver");

/**
 * Length of the beginning of `text` that no later text can change: cleaning it and the rest apart gives the same as
 * cleaning both together.
 */
export function settledLength(text: string): number {
  for (let cut = text.length; cut > 0; cut--) {
    const before = text[cut - 1]!;
    // No match covers an inactive character, so none reaches across it.
    if (!ACTIVE.has(before)) return cut;
    // A match that begins at a blank reaches back only through " ' " and, once blanks are gone, through " n't".
    if (text[cut] === " " && !" 'n".includes(before)) return cut;
  }
  return 0;
}
