// deno-lint-ignore-file no-console -- the command line prints
import { METHODS } from "../../methods/mod.ts";
import { methodFile } from "../commands/new_method.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { printJson } from "./_runtime.ts";

/** A method that works: the window's votes, weighted by the length of what they would fetch. */
export function methodTemplate(name: string): string {
  return `/** ${name}: rows that the last queries attend to, weighted by the length of their values. */
import { defineEviction, integer } from "@kvcache-factory/kvf";

export default defineEviction<{ window: number }>({
  name: "${name}",
  title: "${name}",
  summary: "What the last queries attend to, by the length of values",
  differs: "nothing known",
  // Each option is a flag as well: --window. The budget and its policy, merging and packing come by themselves.
  options: {
    window: integer("Last tokens, whose queries vote; always kept", {
      min: 1,
      default: 8,
    }),
  },
  // What prefill must record, and which rows are never dropped.
  observe: ({ window }) => ({ windowQueries: window }),
  protect: ({ window }) => ({ last: window }),
  // The worth of each row, [stored heads, rows]: the best ones stay. Nothing here leaves the library.
  score(layer, { window }) {
    using votes = layer.observationScores({
      window,
      groupReduce: "mean",
      allRows: true,
    });
    using lengths = layer.valueNorm();
    return votes.multiply(lengths);
  },
});
`;
}

/** `kvf new-method`. */
export function newMethodAction({ args, flags }: Call): Promise<number> {
  const name = args[0]!;
  if (!/^[a-z][a-z0-9_.-]*$/.test(name)) {
    throw new UsageError(
      `Cannot make a method as its name must be lower case, without spaces: "${name}"`,
    );
  }
  if (METHODS.has(name)) {
    throw new UsageError(
      `Cannot make a method as its name must be new: "${name}" is one of the project's`,
    );
  }
  const path = methodFile(name, text(flags, "out"));
  try {
    Deno.writeTextFileSync(path, methodTemplate(name), { createNew: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    throw new UsageError(
      `Cannot make a method as its file must be new: "${path}" is there`,
    );
  }
  if (flags.json) {
    printJson({ file: path, method: name });
    return Promise.resolve(0);
  }
  const next = /[/\\]/.test(path) ? path : `./${path}`;
  console.log(`${path} is written. Next: kvf check-method ${next}`);
  return Promise.resolve(0);
}
