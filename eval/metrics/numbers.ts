/**
 * Scores that look at the numbers of a prediction: LongBench's counting and passage retrieval, English and Chinese.
 *
 * @module
 */
import { digitRuns } from "./_python_text.ts";

/** Share of the numbers in `text` that equal `wanted` as strings; 0 without numbers. Repetitions count. */
function shareOfNumbers(text: string, wanted: string): number {
  const numbers = digitRuns(text);
  if (numbers.length === 0) return 0;
  return numbers.filter((n) => n === wanted).length / numbers.length;
}

function paragraphNumber(answer: string, form: RegExp, word: string): string {
  const number = form.exec(answer)?.[1];
  if (number === undefined) {
    throw new SyntaxError(
      `Cannot score retrieval as the answer must hold "${word}" and a number: answer is ${
        JSON.stringify(answer)
      }`,
    );
  }
  return number;
}

/** LongBench's `count_score` for one answer. */
export function count(prediction: string, answer: string): number {
  return shareOfNumbers(prediction, answer);
}

/**
 * LongBench's `retrieval_score` for one answer.
 *
 * @throws SyntaxError when the answer names no paragraph.
 */
export function retrieval(prediction: string, answer: string): number {
  return shareOfNumbers(
    prediction,
    paragraphNumber(answer, /Paragraph (\p{Nd}+)/u, "Paragraph "),
  );
}

/**
 * LongBench's `retrieval_zh_score` for one answer.
 *
 * @throws SyntaxError when the answer names no paragraph.
 */
export function retrievalChinese(prediction: string, answer: string): number {
  return shareOfNumbers(
    prediction,
    paragraphNumber(answer, /段落(\p{Nd}+)/u, "段落"),
  );
}
