/**
 * A method's options from outside: resolved from an object, or parsed from command-line flags. Names, types, bounds and
 * defaults all come from the method's own specs.
 *
 * @module
 */
import { z } from "zod";
import { nearest } from "./_nearest.ts";
import type { Method, OptionSpec } from "./types.ts";

/** One option of a method as a command-line flag. */
export interface OptionFlag {
  /** Name of the option, for instance `poolWidth`. */
  option: string;
  /** The flag, for instance `--pool-width`. */
  flag: string;
  /** Form of the value. A boolean is given as `true` or `false`. */
  type: "integer" | "number" | "boolean" | "choice" | "integers" | "text";
  /** Accepted words of a choice. */
  choices?: readonly string[];
  /** Default; a required option has none. */
  default?: unknown;
  /** Whether it must be given. */
  required: boolean;
  /** One sentence for help texts. */
  description: string;
  /** Where the default comes from. */
  source?: string;
  /** Value of the flag's text. Throws `TypeError` or `RangeError` when the text is none. */
  parse(text: string): unknown;
}

/** What a JSON schema says of an option. */
interface JsonSchema {
  type?: string;
  enum?: string[];
  default?: unknown;
}

/**
 * Checks options and fills in defaults.
 * @param method the method
 * @param given options as given; `undefined` counts as not given
 * @returns all options of the method
 * @throws {TypeError} for an unknown or missing option and a wrong type
 * @throws {RangeError} for a value outside its range
 */
export function resolveOptions<Options>(
  method: Method<Options>,
  given: Readonly<Record<string, unknown>>,
): Options {
  const specs = Object.entries<OptionSpec<unknown>>(method.options);
  const names = specs.map(([name]) => name);
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined && !names.includes(name)) {
      throw unknownOption(method.name, name, names);
    }
  }
  const resolved: Record<string, unknown> = {};
  for (const [name, spec] of specs) {
    resolved[name] = checkOption(method.name, name, spec, given[name]);
  }
  return resolved as Options;
}

/** The flags of a method's options, in the order of its specs. */
export function optionFlags<Options>(method: Method<Options>): OptionFlag[] {
  return Object.entries<OptionSpec<unknown>>(method.options).map(
    ([option, spec]) => {
      const schema = jsonSchema(spec);
      const type = flagType(method.name, option, schema);
      const flag = `--${
        option.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)
      }`;
      return {
        option,
        flag,
        type,
        ...(schema.enum === undefined ? {} : { choices: schema.enum }),
        ...(schema.default === undefined ? {} : { default: schema.default }),
        required: !spec.schema.safeParse(undefined).success,
        description: spec.description,
        ...(spec.source === undefined ? {} : { source: spec.source }),
        parse: (text: string) =>
          checkOption(
            method.name,
            option,
            spec,
            parseText(`${method.name}" option "${flag}`, type, text),
          ),
      };
    },
  );
}

function unknownOption(
  method: string,
  name: string,
  names: string[],
): TypeError {
  const near = nearest(name, names);
  const hint = near === undefined ? "" : `; did you mean "${near}"?`;
  return new TypeError(
    names.length === 0
      ? `Cannot run "${method}" as it has no options: "${name}" was given`
      : `Cannot run "${method}" as its options are ${
        names.join(", ")
      }: "${name}" was given${hint}`,
  );
}

function checkOption(
  method: string,
  name: string,
  spec: OptionSpec<unknown>,
  value: unknown,
): unknown {
  const result = spec.schema.safeParse(value);
  if (result.success) return result.data;
  if (value === undefined) {
    throw new TypeError(
      `Cannot run "${method}" as option "${name}" is required: ${spec.description}`,
    );
  }
  const [issue] = result.error.issues;
  const outside = ["too_small", "too_big", "custom"].includes(
    issue?.code ?? "",
  );
  const text = JSON.stringify(value) ?? String(value);
  const message =
    `Cannot run "${method}" as option "${name}" is wrong: ${text}: ${
      issue?.message ?? "it is not valid"
    }`;
  throw outside ? new RangeError(message) : new TypeError(message);
}

function jsonSchema(spec: OptionSpec<unknown>): JsonSchema {
  const schema = spec.schema as unknown as z.ZodType;
  return z.toJSONSchema(schema, { io: "input" }) as JsonSchema;
}

function flagType(
  method: string,
  option: string,
  schema: JsonSchema,
): OptionFlag["type"] {
  if (schema.enum !== undefined) return "choice";
  switch (schema.type) {
    case "integer":
    case "number":
    case "boolean":
      return schema.type;
    case "array":
      return "integers";
    case "string":
      return "text";
    default:
      throw new TypeError(
        `Cannot make a flag of "${method}" option "${option}" as its type must be a number, text, boolean or list of integers: it is ${schema.type}`,
      );
  }
}

function parseText(
  what: string,
  type: OptionFlag["type"],
  text: string,
): unknown {
  switch (type) {
    case "choice":
    case "text":
      return text;
    case "boolean":
      if (text === "true" || text === "false") return text === "true";
      throw new TypeError(
        `Cannot read "${what}" as it must be true or false: "${text}"`,
      );
    case "integers":
      return text === ""
        ? []
        : text.split(",").map((part) => parseNumber(what, part.trim()));
    default:
      return parseNumber(what, text);
  }
}

function parseNumber(what: string, text: string): number {
  if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) return Number(text);
  throw new TypeError(
    `Cannot read "${what}" as it must be a number: "${text}"`,
  );
}

/** The files that options name, by option: those whose names end in `File`, where they are not empty. */
export function fileOptions(
  options: Readonly<Record<string, unknown>>,
): { [option: string]: string } {
  return Object.fromEntries(
    Object.entries(options).filter((entry): entry is [string, string] =>
      entry[0].endsWith("File") && typeof entry[1] === "string" &&
      entry[1] !== ""
    ),
  );
}
