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

/**
 * Labels that tell all configurations of a comparison apart: the short label, and where several share one, the options
 * in which they differ.
 */
export function labelsOf(configurations: readonly Configuration[]): string[] {
  const short = configurations.map(labelOf);
  return configurations.map((one, i) => {
    const alike = configurations.filter((_, k) => short[k] === short[i]);
    const facts = alike.map((other): Record<string, unknown> => ({
      ...other.options,
      granularity: other.granularity,
    }));
    const own: Record<string, unknown> = {
      ...one.options,
      granularity: one.granularity,
    };
    const differing = Object.keys(own).filter((name) =>
      new Set(facts.map((fact) => JSON.stringify(fact[name]))).size > 1
    );
    const suffix = differing.map((name) => `${name}=${String(own[name])}`);
    return [short[i], ...suffix].join(" ");
  });
}
