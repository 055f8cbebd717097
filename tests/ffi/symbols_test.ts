import { assert, assertEquals } from "@std/assert";
import { ABI_VERSION, SYMBOLS } from "../../ffi/_symbols.ts";
import { readMacro, readPrototypes } from "./header.ts";

const PLAIN_TYPES = new Map([
  ["uint32_t", "u32"],
  ["int32_t", "i32"],
  ["float", "f32"],
  ["double", "f64"],
  ["void", "void"],
]);

/** What Deno passes for a C type. */
function nativeType(type: string): string {
  if (/^kvf_(device|model|cache) \*$/.test(type)) return "pointer";
  return type.endsWith("*")
    ? "buffer"
    : PLAIN_TYPES.get(type) ?? `unknown type ${type}`;
}

interface Entry {
  name?: string;
  nonblocking?: boolean;
  parameters: readonly string[];
  result: string;
}

const entries = Object.entries<Entry>(SYMBOLS);

/** The lines of `_symbols.ts` that name a section or a function. */
function tableOrder(): string[] {
  const text = Deno.readTextFileSync(
    new URL("../../ffi/_symbols.ts", import.meta.url),
  );
  const table = text.slice(text.indexOf("export const SYMBOLS"));
  return [...table.matchAll(/^ {2}(?:\/\/ ---- (.*) ----|(\w+): \{)/gm)]
    .map(([, section, name]) => section ?? name ?? "")
    .filter((line) => !line.endsWith("_async"));
}

Deno.test("SYMBOLS has the functions and sections of the header in its order", () => {
  const expected: string[] = [];
  let section = "";
  for (const prototype of readPrototypes()) {
    if (prototype.section !== section) expected.push(prototype.section);
    section = prototype.section;
    expected.push(prototype.name);
  }
  assert(expected.length > 50);
  assertEquals(tableOrder(), expected);
});

Deno.test("SYMBOLS passes every argument and result as the header declares it", () => {
  for (const { name, result, parameters } of readPrototypes()) {
    const found = entries.filter(([key, entry]) =>
      (entry.name ?? key) === name
    );
    assert(found.length > 0, name);
    for (const [key, entry] of found) {
      assertEquals(
        [key, entry.result, ...entry.parameters],
        [
          key,
          nativeType(result),
          ...parameters.map(({ type }) => nativeType(type)),
        ],
      );
    }
  }
});

Deno.test("SYMBOLS names every argument beside its type as the header does", () => {
  const text = Deno.readTextFileSync(
    new URL("../../ffi/_symbols.ts", import.meta.url),
  );
  const handles = ["dev", "model", "cache"];
  for (const { name, parameters } of readPrototypes()) {
    const shared = name.replace(/^kvf_/, "").toUpperCase();
    const start = text.search(
      new RegExp(`^ {2}${name}: \\{\\n|^const ${shared} = \\[`, "m"),
    );
    if (start < 0) continue; // one line: a handle and nothing else
    const body = text.slice(start, text.indexOf("]", text.indexOf('"', start)));
    const block = text.slice(start).match(
      /[\s\S]*?\n {0,4}\] ?(as const)?[,;]/,
    );
    const names = [...(block?.[0] ?? body).matchAll(/", \/\/ (\w+)/g)]
      .map(([, argument]) => argument);
    assertEquals(
      [name, ...names],
      [
        name,
        ...parameters.map((p) => p.name).filter((p) => !handles.includes(p)),
      ],
    );
  }
});

Deno.test("SYMBOLS runs the second entry of a function on another thread", () => {
  for (const [key, entry] of entries) {
    assertEquals(key.endsWith("_async"), entry.nonblocking === true);
    if (entry.nonblocking) assertEquals(`${entry.name}_async`, key);
  }
});

Deno.test("ABI_VERSION is that of the header", () => {
  assertEquals(ABI_VERSION, readMacro("KVF_ABI_VERSION"));
});
