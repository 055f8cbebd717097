/**
 * When a method acts: once, when prefill ends, or again during generation.
 *
 * @module
 */
import { text } from "../define.ts";
import type { OptionSpec } from "../types.ts";

/** When to act again during generation, in generated tokens. */
export interface Schedule {
  /** Tokens between two actions. */
  every: number;
}

/** The option of every eviction method. */
export const SCHEDULE_OPTION: OptionSpec<string> = text(
  "When the method acts: prefill",
  { pattern: /^(prefill|step|every:[1-9]\d*)$/, default: "prefill" },
);

/**
 * The schedule that an option's value names; undefined for `prefill`.
 * @throws {RangeError} when the method cannot act so
 */
export function scheduleOf(
  method: string,
  schedule: string,
): Schedule | undefined {
  if (schedule === "prefill") return undefined;
  throw new RangeError(
    `Cannot run "${method}" as schedule must be prefill: it is "${schedule}"`,
  );
}
