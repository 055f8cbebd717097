/**
 * LongBench's classification score: which labels does the prediction name?
 *
 * @module
 */

/**
 * LongBench's `classification_score` for one answer: one over the number of labels found when the answer is among
 * them, else 0.
 *
 * Labels that are a proper part of the answer are dropped from the labels found. The reference drops them while it
 * iterates over the same list, which skips the label that follows each dropped one; published numbers contain the
 * skip, so it is kept here.
 *
 * @param prediction Generated text.
 * @param answer The right label.
 * @param labels All labels of the data set, in its order.
 */
export function classification(
  prediction: string,
  answer: string,
  labels: readonly string[],
): number {
  const found = labels.filter((label) => prediction.includes(label));
  for (let i = 0; i < found.length; i++) {
    const label = found[i];
    if (label === undefined || label === answer || !answer.includes(label)) {
      continue;
    }
    found.splice(found.indexOf(label), 1);
  }
  return found.includes(answer) ? 1 / found.length : 0;
}
