/**
 * Reads csrc/kvf.h as far as the tests need it: sections, prototypes, structs and enums.
 *
 * @module
 */

/** A function of the header. */
export interface Prototype {
  name: string;
  section: string;
  result: string;
  parameters: { type: string; name: string }[];
}

/** The header's text without comments; section comments become lines of their own. */
const text = Deno.readTextFileSync(
  new URL("../../csrc/kvf.h", import.meta.url),
)
  .replace(/\/\* ---- (.*?) ---- \*\//g, (_, title) => `@${title}\n`)
  .replace(/\/\*[\s\S]*?\*\//g, "");

/** The functions in order. */
export function readPrototypes(): Prototype[] {
  const found: Prototype[] = [];
  let section = "";
  for (const match of text.matchAll(/^@(.*)$|KVF_API ([^;]*);/gm)) {
    if (match[1] !== undefined) section = match[1];
    const prototype = match[2]?.replace(/\s+/g, " ").match(
      /^(.*?)(\w+)\((.*)\)$/,
    );
    if (!prototype) continue;
    const [, result = "", name = "", list = ""] = prototype;
    found.push({
      name,
      section,
      result: result.trim(),
      parameters: list === "void" ? [] : list.split(",").map((parameter) => {
        const [, type = "", name = ""] = parameter.trim().match(
          /^(.*?)(\w+)$/,
        ) ?? [];
        return { type: type.trim(), name };
      }),
    });
  }
  return found;
}

/** The structs with the C types of their fields. */
export function readStructs(): Map<string, [name: string, type: string][]> {
  const structs = new Map<string, [string, string][]>();
  for (
    const [, name = "", body = ""] of text.matchAll(
      /typedef struct (\w+) \{([^}]*)\}/g,
    )
  ) {
    const fields = [...body.matchAll(/(\w+) (\w+)(\[\d+\])?;/g)];
    structs.set(
      name,
      fields.map(([, type, field = "", array = ""]) => [
        field,
        `${type}${array}`,
      ]),
    );
  }
  return structs;
}

/** The constants of an enum. */
export function readEnum(name: string): Map<string, number> {
  const body = text.match(new RegExp(`enum ${name} \\{([^}]*)\\}`))?.[1] ?? "";
  return new Map(
    [...body.matchAll(/(\w+) = (-?\d+)/g)].map((
      [, key = "", value],
    ) => [key, Number(value)]),
  );
}

/** A number that is defined by a macro. */
export function readMacro(name: string): number {
  return Number(text.match(new RegExp(`#define ${name} (\\d+)`))?.[1]);
}
