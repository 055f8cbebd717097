/**
 * The Porter stemmer of 1980 with the extensions of NLTK's default mode, which ROUGE-1 of the needle test uses.
 *
 * Paper: M. F. Porter, An algorithm for suffix stripping, Program 14(3), 1980.
 * Differs from the paper: a short list of irregular words, words of two letters stay, -ies and -ied of four letters
 * keep -ie, y becomes i only after a consonant with more letters before it, -bli instead of -abli, -alli is tried
 * again after it was cut, -fulli and -logi are known, and "consonant, vowel, consonant" also holds for a stem of a
 * vowel and a consonant.
 *
 * @module
 */

const IRREGULAR = new Map([
  ["sky", "sky"],
  ["skies", "sky"],
  ["dying", "die"],
  ["lying", "lie"],
  ["tying", "tie"],
  ["news", "news"],
  ["innings", "inning"],
  ["inning", "inning"],
  ["outings", "outing"],
  ["outing", "outing"],
  ["cannings", "canning"],
  ["canning", "canning"],
  ["howe", "howe"],
  ["proceed", "proceed"],
  ["exceed", "exceed"],
  ["succeed", "succeed"],
]);

function isConsonant(word: string, i: number): boolean {
  const char = word.charAt(i);
  if ("aeiou".includes(char)) return false;
  return char !== "y" || i === 0 || !isConsonant(word, i - 1);
}

/** The word as a string of `c` and `v`. */
function shape(word: string): string {
  let out = "";
  for (let i = 0; i < word.length; i++) out += isConsonant(word, i) ? "c" : "v";
  return out;
}

/** Porter's m: how often a vowel run is followed by a consonant run. */
function measure(stem: string): number {
  return shape(stem).match(/vc/g)?.length ?? 0;
}

function hasVowel(stem: string): boolean {
  return shape(stem).includes("v");
}

function endsDouble(word: string): boolean {
  return word.length >= 2 && word.at(-1) === word.at(-2) &&
    isConsonant(word, word.length - 1);
}

function endsShort(word: string): boolean {
  const form = shape(word);
  return (form.endsWith("cvc") && !/[wxy]$/.test(word)) || form === "vc";
}

type Rule = [
  suffix: string,
  replacement: string,
  holds: (stem: string) => boolean,
];

/** Applies the first rule whose suffix fits; if its condition fails the word stays. */
function apply(word: string, rules: Rule[]): string {
  for (const [suffix, replacement, holds] of rules) {
    if (!word.endsWith(suffix)) continue;
    const stem = word.slice(0, word.length - suffix.length);
    return holds(stem) ? stem + replacement : word;
  }
  return word;
}

const always = () => true;
const positive = (stem: string) => measure(stem) > 0;
const above1 = (stem: string) => measure(stem) > 1;

/** `suffix:replacement` pairs under one condition. */
function rules(pairs: string, holds: (stem: string) => boolean): Rule[] {
  return pairs.split(" ").map((pair) => {
    const [suffix = "", replacement = ""] = pair.split(":");
    return [suffix, replacement, holds];
  });
}

const STEP_1A = rules("sses:ss ies:i ss:ss s:", always);
const STEP_2: Rule[] = [
  ...rules(
    "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble alli:al entli:ent eli:e ousli:ous " +
      "ization:ize ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive " +
      "biliti:ble fulli:ful",
    positive,
  ),
  ["logi", "log", (stem) => positive(stem + "l")],
];
const STEP_3 = rules(
  "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:",
  positive,
);
const STEP_4: Rule[] = [
  ...rules(
    "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent:",
    above1,
  ),
  ["ion", "", (stem) => above1(stem) && /[st]$/.test(stem)],
  ...rules("ou: ism: ate: iti: ous: ive: ize:", above1),
];

function step1a(word: string): string {
  if (word.length === 4 && word.endsWith("ies")) return word.slice(0, -1);
  return apply(word, STEP_1A);
}

function step1b(word: string): string {
  if (word.endsWith("ied")) return word.slice(0, word.length === 4 ? -1 : -2);
  if (word.endsWith("eed")) {
    const stem = word.slice(0, -3);
    return measure(stem) > 0 ? stem + "ee" : word;
  }
  const suffix = ["ed", "ing"].find((end) =>
    word.endsWith(end) && hasVowel(word.slice(0, -end.length))
  );
  if (suffix === undefined) return word;
  const stem = word.slice(0, -suffix.length);
  if (/(at|bl|iz)$/.test(stem)) return stem + "e";
  if (endsDouble(stem)) return /[lsz]$/.test(stem) ? stem : stem.slice(0, -1);
  return measure(stem) === 1 && endsShort(stem) ? stem + "e" : stem;
}

function step1c(word: string): string {
  const stem = word.slice(0, -1);
  const turns = word.endsWith("y") && stem.length > 1 &&
    isConsonant(stem, stem.length - 1);
  return turns ? stem + "i" : word;
}

function step2(word: string): string {
  if (word.endsWith("alli") && positive(word.slice(0, -4))) {
    return step2(word.slice(0, -2));
  }
  return apply(word, STEP_2);
}

function step5(word: string): string {
  let out = word;
  if (out.endsWith("e")) {
    const stem = out.slice(0, -1);
    const m = measure(stem);
    if (m > 1 || (m === 1 && !endsShort(stem))) out = stem;
  }
  return out.endsWith("ll") && above1(out.slice(0, -1))
    ? out.slice(0, -1)
    : out;
}

/**
 * Stem of an English word.
 *
 * @param word One word, any letter case.
 */
export function porterStem(word: string): string {
  const lower = word.toLowerCase();
  const irregular = IRREGULAR.get(lower);
  if (irregular !== undefined) return irregular;
  if (lower.length <= 2) return lower;
  const step1 = step1c(step1b(step1a(lower)));
  return step5(apply(apply(step2(step1), STEP_3), STEP_4));
}
