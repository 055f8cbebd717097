/**
 * Helpers to declare a method's options once: they give types, validation, command-line flags, help and records.
 *
 * @module
 */
import { z } from "zod";
import type { Method, OptionSpec } from "./types.ts";

export type { Method } from "./types.ts";

/** An integer option. Without a default the option is required. */
export function integer(
  description: string,
  rules: {
    min?: number;
    max?: number;
    odd?: boolean;
    oneOf?: readonly number[];
    default?: number;
    source?: string;
  } = {},
): OptionSpec<number> {
  let schema: z.ZodType<number> = z.int().min(rules.min ?? 0).max(
    rules.max ?? 2 ** 31 - 1,
  );
  if (rules.odd) schema = schema.refine((n) => n % 2 === 1, "must be odd");
  const { oneOf } = rules;
  if (oneOf !== undefined) {
    schema = schema.refine(
      (n) => oneOf.includes(n),
      `must be one of ${oneOf.join(", ")}`,
    );
  }
  return spec(description, schema, rules);
}

/** A number option. */
export function real(
  description: string,
  rules: { min?: number; max?: number; default?: number; source?: string } = {},
): OptionSpec<number> {
  let schema = z.number();
  if (rules.min !== undefined) schema = schema.min(rules.min);
  if (rules.max !== undefined) schema = schema.max(rules.max);
  return spec<number>(description, schema, rules);
}

/** One of several words. */
export function choice<const T extends string>(
  description: string,
  values: readonly [T, ...T[]],
  rules: { default?: T; source?: string } = {},
): OptionSpec<T> {
  return spec<T>(description, z.enum(values) as unknown as z.ZodType<T>, rules);
}

/** A yes-or-no option. */
export function flag(
  description: string,
  rules: { default?: boolean; source?: string } = {},
): OptionSpec<boolean> {
  return spec(description, z.boolean(), rules);
}

/** A list of integers, for instance layers. */
export function integers(
  description: string,
  rules: { default?: number[]; source?: string } = {},
): OptionSpec<number[]> {
  return spec(description, z.array(z.int().min(0)), rules);
}

/** A word of a certain form, for instance `NAME:BITS`. */
export function text(
  description: string,
  rules: { pattern: RegExp; default?: string; source?: string },
): OptionSpec<string> {
  return spec<string>(description, z.string().regex(rules.pattern), rules);
}

/** Path of a file that the method reads; empty: none. Options of this kind have names that end in `File`. */
export function file(
  description: string,
  rules: { source?: string } = {},
): OptionSpec<string> {
  return spec<string>(description, z.string(), { ...rules, default: "" });
}

function spec<T>(
  description: string,
  schema: z.ZodType<T>,
  rules: { default?: T; source?: string },
): OptionSpec<T> {
  const withDefault = rules.default === undefined
    ? schema
    : (schema.default(rules.default as never) as unknown as z.ZodType<T>);
  return {
    schema: withDefault,
    description,
    ...(rules.source === undefined ? {} : { source: rules.source }),
  };
}

/** Returns its argument; gives the type without naming it twice. */
export function defineMethod<Options>(
  method: Method<Options>,
): Method<Options> {
  return method;
}
