/**
 * RULER's scores: do the answers occur in the prediction?
 *
 * @module
 */
import { strip } from "./_python_text.ts";

/** RULER's cleaning of a prediction: trimmed, and every control character below U+0020 becomes a newline. */
export function cleanRulerPrediction(prediction: string): string {
  // deno-lint-ignore no-control-regex -- control characters are what RULER replaces
  return strip(strip(prediction).replace(/[\x00-\x1f]/g, "\n"));
}

/** Share of the answers that occur in the prediction, letter case aside. An empty answer always occurs. */
export function stringMatchAll(prediction: string, answers: string[]): number {
  if (answers.length === 0) return 0;
  const text = prediction.toLowerCase();
  const hits = answers.filter((answer) => text.includes(answer.toLowerCase()));
  return hits.length / answers.length;
}

/** 1 if any answer occurs in the prediction, letter case aside, else 0. */
export function stringMatchPart(prediction: string, answers: string[]): number {
  const text = prediction.toLowerCase();
  return answers.some((answer) => text.includes(answer.toLowerCase())) ? 1 : 0;
}
