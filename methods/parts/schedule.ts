/**
 * When a method acts: once, when prefill ends, or again during generation.
 *
 * @module
 */
import { text } from "../define.ts";
import type { Observation, OptionSpec } from "../types.ts";

/** When to act again during generation. */
export type Schedule =
  /** In every step, inside the library: the budget is never exceeded. */
  | { kind: "step" }
  /** Whenever so many new tokens were generated, on all layers. */
  | { kind: "every"; tokens: number };

/** The option of every eviction method. */
export const SCHEDULE_OPTION: OptionSpec<string> = text(
  "When the method acts: prefill, step (at every token, where the method can) or every:N (again after N new tokens)",
  { pattern: /^(prefill|step|every:[1-9]\d*)$/, default: "prefill" },
);

/**
 * The schedule that an option's value names; undefined for `prefill`.
 * @param can whether the method can evict inside a step, and what it observes
 * @throws {RangeError} when the method cannot act so
 */
export function scheduleOf(
  method: string,
  schedule: string,
  can: { canStep: boolean; observation?: Observation },
): Schedule | undefined {
  if (schedule === "prefill") return undefined;
  if (schedule === "step") {
    if (can.canStep) return { kind: "step" };
    throw new RangeError(
      `Cannot run "${method}" as schedule must be prefill or every:N: it is "step", and its scores do not follow single tokens`,
    );
  }
  const ended = can.observation?.columnMasses?.find((set) =>
    set !== "all" && ("prefix" in set || "ranges" in set)
  );
  if (ended !== undefined) {
    throw new RangeError(
      `Cannot run "${method}" as schedule must be prefill: it is "${schedule}", and its scores are of prompt tokens alone: ${
        JSON.stringify(ended)
      }`,
    );
  }
  return { kind: "every", tokens: Number(schedule.slice("every:".length)) };
}

/**
 * What prefill must record so that a method can act again: a mass of the last queries goes on with the queries
 * themselves.
 */
export function keptFor(
  schedule: Schedule | undefined,
  observation: Observation | undefined,
): Observation | undefined {
  if (schedule?.kind !== "every" || observation === undefined) {
    return observation;
  }
  const suffixes = (observation.columnMasses ?? []).map((set) =>
    typeof set === "object" && "suffix" in set ? set.suffix ?? 0 : 0
  );
  const windowQueries = Math.max(observation.windowQueries ?? 0, ...suffixes);
  return { ...observation, ...(windowQueries > 0 ? { windowQueries } : {}) };
}
