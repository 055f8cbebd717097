/**
 * Names for things that share one: what tells them apart is added.
 *
 * @module
 */
import { canonicalJson, type JsonObject } from "../records/mod.ts";

/** The object without some fields. */
export function without(
  object: JsonObject,
  names: readonly string[],
): JsonObject {
  return Object.fromEntries(
    Object.entries(object).filter(([name]) => !names.includes(name)),
  );
}

/** `name=value` for the fields in which an object differs from any of its fellows. */
export function differences(
  object: JsonObject,
  fellows: JsonObject[],
): string[] {
  const names = new Set(fellows.flatMap((fellow) => Object.keys(fellow)));
  return [...names].sort().filter((name) =>
    new Set(fellows.map((fellow) => canonicalJson(fellow[name] ?? null))).size >
      1
  ).map((name) => {
    const value = object[name] ?? null;
    return `${name}=${
      typeof value === "string" ? value : canonicalJson(value)
    }`;
  });
}

/** Names for things with a base name: where it is shared, the fields that differ are added. */
export function nameApart<T>(
  things: readonly T[],
  base: (thing: T) => string,
  fields: (thing: T) => JsonObject,
): Map<T, string> {
  const groups = Map.groupBy(things, base);
  return new Map(things.map((thing) => {
    const fellows = groups.get(base(thing)) ?? [];
    const rest = fellows.length > 1
      ? differences(fields(thing), fellows.map(fields))
      : [];
    return [thing, [base(thing), ...rest].join(" ")];
  }));
}
