/**
 * Haystack language: plain, varied, boring English sentences without digits, as many as wanted.
 *
 * @module
 */
import type { Random } from "../random.ts";
import { ADJECTIVES, NOUNS, VERBS } from "./words.ts";

const PLACES = [
  "behind the",
  "near the",
  "beside the",
  "under the",
  "across from the",
  "next to the",
  "along the",
  "inside the",
  "around the",
  "beyond the",
];
const TIMES = [
  "in the evening",
  "before lunch",
  "after the rain",
  "at dawn",
  "most weekends",
  "once a year",
  "all day long",
  "during the holidays",
  "at the end of the week",
  "when nobody looks",
];
const OPENERS = [
  "By now",
  "As a rule",
  "These days",
  "Every so often",
  "In theory",
  "To be fair",
  "Sooner or later",
  "In spite of everything",
  "Without much talk",
  "For no clear reason",
];
const HABITS = ["often", "rarely", "still", "never", "always", "sometimes"];
const MODALS = ["can", "may", "will", "should", "must", "might", "could"];
const QUANTITIES = ["Some", "Most", "Many", "A few", "Several", "All"];

/** A noun phrase: article, one adjective, noun. */
function thing(r: Random): string {
  return `${r.choice(ADJECTIVES)} ${r.choice(NOUNS)}`;
}

/** Sentence patterns; each returns one sentence with its full stop. */
const PATTERNS: ReadonlyArray<(r: Random) => string> = [
  (r) =>
    `The ${thing(r)} stands ${r.choice(PLACES)} ${r.choice(NOUNS)} and waits.`,
  (r) =>
    `${r.choice(QUANTITIES)} ${r.choice(ADJECTIVES)} ${r.choice(NOUNS)}s ${
      r.choice(HABITS)
    } ${r.choice(VERBS)} the ${r.choice(NOUNS)} ${r.choice(TIMES)}.`,
  (r) =>
    `${r.choice(OPENERS)}, the ${r.choice(NOUNS)} ${r.choice(MODALS)} ${
      r.choice(VERBS)
    } the ${thing(r)}.`,
  (r) =>
    `Nobody wanted to ${r.choice(VERBS)} the ${r.choice(NOUNS)} ${
      r.choice(TIMES)
    }, so the ${r.choice(NOUNS)} stayed ${r.choice(ADJECTIVES)}.`,
  (r) =>
    `There was a ${r.choice(NOUNS)} ${r.choice(PLACES)} ${
      thing(r)
    }, and it was ${r.choice(ADJECTIVES)} enough for a ${r.choice(NOUNS)}.`,
  (r) =>
    `When the ${r.choice(NOUNS)} is ${r.choice(ADJECTIVES)}, people ${
      r.choice(VERBS)
    } their ${r.choice(NOUNS)}s and go home.`,
  (r) =>
    `A ${r.choice(NOUNS)} is not a ${r.choice(NOUNS)}, but both look ${
      r.choice(ADJECTIVES)
    } ${r.choice(TIMES)}.`,
  (r) => `It takes a ${thing(r)} to ${r.choice(VERBS)} the ${r.choice(NOUNS)}.`,
  (r) =>
    `They ${r.choice(VERBS)} and ${r.choice(VERBS)} what the ${
      r.choice(NOUNS)
    } left ${r.choice(PLACES)} ${r.choice(NOUNS)}.`,
  (r) =>
    `${r.choice(OPENERS)}, a ${r.choice(NOUNS)} seems more ${
      r.choice(ADJECTIVES)
    } than the ${thing(r)}.`,
  (r) =>
    `If you ${r.choice(VERBS)} the ${r.choice(NOUNS)} first, the ${
      r.choice(NOUNS)
    } ${r.choice(MODALS)} remain ${r.choice(ADJECTIVES)}.`,
  (r) =>
    `The ${r.choice(NOUNS)}s ${r.choice(PLACES)} ${r.choice(NOUNS)} were ${
      r.choice(ADJECTIVES)
    }, then ${r.choice(ADJECTIVES)}.`,
  (r) =>
    `We ${r.choice(MODALS)} ${r.choice(VERBS)} it ${
      r.choice(TIMES)
    } because the ${r.choice(NOUNS)} looks ${r.choice(ADJECTIVES)}.`,
  (r) =>
    `Somebody has to ${r.choice(VERBS)} the ${thing(r)} ${r.choice(TIMES)}.`,
  (r) =>
    `What makes a ${r.choice(NOUNS)} ${
      r.choice(ADJECTIVES)
    } is the way people ${r.choice(VERBS)} it.`,
  (r) =>
    `I would rather ${r.choice(VERBS)} a ${thing(r)} than ${
      r.choice(VERBS)
    } another ${r.choice(NOUNS)}.`,
];

/** One sentence of haystack language. */
export function haystackSentence(random: Random): string {
  return random.choice(PATTERNS)(random);
}

/** Sentences of haystack language without end. */
export function* haystackSentences(random: Random): Generator<string> {
  for (;;) yield haystackSentence(random);
}

/**
 * Splits text into sentences: after `.`, `!` or `?` with any closing quotes or brackets, where white space follows. White
 * space inside a sentence collapses to one space.
 */
export function splitSentences(text: string): string[] {
  return text.replace(/\s+/g, " ").trim()
    .split(/(?<=[.!?]["'”’)\]]*) (?=\S)/u)
    .filter((s) => s.length > 0);
}

/** The noise paragraph: five very short sentences, no digits. */
export const NOISE =
  "Rain falls. The road is long. A lamp is lit. The wind is low. We walk on.";
