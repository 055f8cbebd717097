// deno-lint-ignore-file no-console -- the command line prints
import {
  type AnyMethod,
  loadMethod,
  METHODS,
  optionFlags,
} from "../../methods/mod.ts";
import type { Call } from "../spec.ts";
import { printColumns, printJson } from "./_runtime.ts";

/** `kvf methods`. */
export async function methodsAction({ args, flags }: Call): Promise<number> {
  const chosen = args[0] === undefined
    ? [...METHODS.values()]
    : [await loadMethod(args[0])];
  if (flags.json) {
    printJson({ methods: chosen.map(describe) });
    return 0;
  }
  if (args[0] === undefined) {
    printColumns([
      ["method", "kind", "layouts", "what it does"],
      ...chosen.map((
        method,
      ) => [
        method.name,
        method.kind,
        method.granularities.join(", "),
        method.summary,
      ]),
    ]);
    return 0;
  }
  const method = chosen[0]!;
  console.log(`${method.title}: ${method.summary}\n`);
  printColumns([
    ["kind", method.kind],
    ["paper", method.paper ?? "-"],
    ["acts", method.acts],
    ["layouts", method.granularities.join(", ")],
    ["prefill", method.altersPrefill ? "one of its own" : "shared"],
    ["differs", method.differs],
  ]);
  const options = optionFlags(method);
  if (options.length > 0) {
    console.log("\noptions");
    printColumns(
      options.map((flag) => [
        `  ${flag.flag}`,
        flag.choices?.join("|") ?? flag.type,
        flag.required
          ? "required"
          : `default ${flag.default === "" ? "none" : flag.default}`,
        flag.description +
        (flag.source === undefined ? "" : ` (default: ${flag.source})`),
      ]),
    );
  }
  return 0;
}

function describe(method: AnyMethod): unknown {
  const {
    name,
    title,
    summary,
    paper,
    kind,
    acts,
    granularities,
    altersPrefill = false,
    differs,
  } = method;
  const options = optionFlags(method).map(({ parse: _, ...flag }) => flag);
  return {
    name,
    title,
    summary,
    paper,
    kind,
    acts,
    granularities,
    altersPrefill,
    differs,
    options,
  };
}
