/**
 * From names and flags to configurations: every method with every budget, options resolved and checked before any work.
 *
 * @module
 */
import { type AnyMethod, resolveOptions } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";
import type { Configuration } from "./types.ts";

/**
 * Crosses methods with budgets. A method without a `budget` option is taken once.
 *
 * @param methods the methods
 * @param budgets rows per layer and head; empty: the budget must be among `given`
 * @param given other options; each goes to the methods that have it, and one that no method has is refused
 * @param granularity what one stored head is; a method that is not defined for it is refused
 */
export function crossConfigurations(
  methods: readonly AnyMethod[],
  budgets: readonly number[],
  given: Readonly<Record<string, unknown>>,
  granularity: Granularity,
): Configuration[] {
  for (const name of Object.keys(given)) {
    if (!methods.some((method) => name in method.options)) {
      const known = [
        ...new Set(methods.flatMap((method) => Object.keys(method.options))),
      ];
      throw new TypeError(
        `Cannot use option "${name}" as no chosen method has it: the methods have ${
          known.join(", ") || "no options"
        }`,
      );
    }
  }
  const configurations: Configuration[] = [];
  for (const method of methods) {
    if (!method.granularities.includes(granularity)) {
      throw new RangeError(
        `Cannot run "${method.name}" as its granularity must be ${
          method.granularities.join(" or ")
        }: it is ${granularity}`,
      );
    }
    const own = Object.fromEntries(
      Object.entries(given).filter(([name]) => name in method.options),
    );
    const variants = "budget" in method.options && budgets.length > 0
      ? budgets.map((budget) => ({ ...own, budget }))
      : [own];
    for (const options of variants) {
      configurations.push({
        method,
        options: resolveOptions(method, options),
        granularity,
      });
    }
  }
  return configurations;
}

/** A short label: the method and its budget. */
export function labelOf(
  configuration: Pick<Configuration, "method" | "options">,
): string {
  const budget = configuration.options.budget;
  return budget === undefined
    ? configuration.method.title
    : `${configuration.method.title} ${budget}`;
}
