/**
 * The nearest valid name, for messages about a wrong one.
 *
 * @module
 */

/** The candidate with the fewest edits from `name`, if it is near enough to be meant. */
export function nearest(
  name: string,
  candidates: Iterable<string>,
): string | undefined {
  let best: string | undefined;
  let fewest = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of candidates) {
    const edits = distance(name.toLowerCase(), candidate.toLowerCase());
    if (edits < fewest) {
      best = candidate;
      fewest = edits;
    }
  }
  return best;
}

/** Levenshtein distance: insertions, deletions and replacements that turn `a` into `b`. */
export function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++) {
      next.push(Math.min(
        (row[j] ?? 0) + (a[i] === b[j] ? 0 : 1),
        (row[j + 1] ?? 0) + 1,
        (next[j] ?? 0) + 1,
      ));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
