/**
 * What prefill records: the union over all policies that will act on it, and its form for the library.
 *
 * @module
 */
import type { Observation, QuerySet } from "../methods/types.ts";
import { checkInteger } from "./_check.ts";
import { OBSERVE } from "./_structs.ts";

/** Column masses that one prefill can record. */
export const MAX_COLUMN_MASSES = 4;

/** A union of observations: nothing is missing, query sets are distinct. */
export interface MergedObservation {
  /** Queries of the last `windowQueries` prompt tokens. */
  readonly windowQueries: number;
  /** Column masses, one per distinct query set. */
  readonly columnMasses: readonly QuerySet[];
}

/** Records nothing. */
export const NO_OBSERVATION: MergedObservation = {
  windowQueries: 0,
  columnMasses: [],
};

/**
 * Unites the observations of several policies, so that one prefill serves them all: the widest window, and each query
 * set once.
 * @throws {RangeError} when there are more than {@linkcode MAX_COLUMN_MASSES} different query sets
 */
export function mergeObservations(
  observations: Iterable<Observation | undefined>,
): MergedObservation {
  let windowQueries = 0;
  const masses = new Map<string, QuerySet>();
  for (const observation of observations) {
    if (observation === undefined) continue;
    const window = observation.windowQueries ?? 0;
    checkInteger("merge observations", "windowQueries", window);
    windowQueries = Math.max(windowQueries, window);
    for (const set of observation.columnMasses ?? []) {
      const key = querySetKey(set);
      if (!masses.has(key)) masses.set(key, set);
    }
  }
  if (masses.size > MAX_COLUMN_MASSES) {
    throw new RangeError(
      `Cannot merge observations as one prefill records at most ${MAX_COLUMN_MASSES} query sets: there are ${masses.size}: ${
        [...masses.keys()].join("; ")
      }`,
    );
  }
  return { windowQueries, columnMasses: [...masses.values()] };
}

/** The same text for equal query sets: "all", "suffix 8" or ranges such as "0-4,10-12". */
export function querySetKey(set: QuerySet): string {
  const action = "name a query set";
  if (set === "all") return "all";
  if ("suffix" in set) {
    const suffix = `suffix ${checkInteger(action, "suffix", set.suffix, 1)}`;
    return "prefix" in set
      ? `prefix ${checkInteger(action, "prefix", set.prefix, 1)}, ${suffix}`
      : suffix;
  }
  const ranges: [number, number][] = "prefix" in set
    ? [[0, checkInteger(action, "prefix", set.prefix, 1)]]
    : set.ranges.map(([first, end]) => {
      checkInteger(action, "first", first);
      checkInteger(action, "end", end, first);
      return [first, end];
    });
  const merged: [number, number][] = [];
  for (const [first, end] of ranges.sort((a, b) => a[0] - b[0])) {
    if (first === end) continue;
    const last = merged.at(-1);
    if (last !== undefined && first <= last[1]) {
      last[1] = Math.max(last[1], end);
    } else merged.push([first, end]);
  }
  return merged.map(([first, end]) => `${first}-${end}`).join(",");
}

/** Half-open ranges of queries of a prompt of `length` tokens. */
function querySetRanges(set: QuerySet, length: number): [number, number][] {
  if (set === "all") return [[0, length]];
  if ("suffix" in set) {
    const last: [number, number] = [Math.max(0, length - set.suffix), length];
    return "prefix" in set ? [[0, Math.min(set.prefix, length)], last] : [last];
  }
  if ("prefix" in set) return [[0, Math.min(set.prefix, length)]];
  return set.ranges
    .map(([first, end]): [number, number] => [first, Math.min(end, length)])
    .filter(([first, end]) => first < end);
}

/** An observation of a prompt of `length` tokens as C reads it: `kvf_observe` and `[n_range, 3] u32`. */
export function encodeObservation(
  observation: MergedObservation,
  length: number,
): { observe: Uint8Array<ArrayBuffer>; ranges: Uint32Array<ArrayBuffer> } {
  const ranges = observation.columnMasses.flatMap((set, mass) =>
    querySetRanges(set, length).map((range) => [mass, ...range])
  );
  return {
    observe: OBSERVE.encode({
      n_window: Math.min(observation.windowQueries, length),
      n_mass: observation.columnMasses.length,
      n_range: ranges.length,
    }),
    ranges: Uint32Array.from(ranges.flat()),
  };
}
