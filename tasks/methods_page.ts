/**
 * Writes what is said of the methods from the code: docs/methods.md (every method with its options, and what can be
 * combined with what) and the table in the README.
 *
 *     deno task docs:methods
 *
 * @module
 */
import {
  type AnyMethod,
  METHODS,
  optionFlags,
  resolveOptions,
} from "../methods/mod.ts";
import { QUANTISERS } from "../methods/parts/quant.ts";

/** A model of usual shape, to try combinations on. */
const SHAPE = { layers: 4, queryHeads: 8, kvHeads: 2, headDim: 64 };

/** Values of each part that may be exchanged. */
const PARTS: Record<string, Record<string, unknown>[]> = {
  "budget policy": ["uniform", "pyramid", "adaptive", "table"]
    .map((budgetPolicy) => ({ budgetPolicy })),
  "merge": ["none", "pivot", "weighted"].map((merge) => ({ merge })),
  "quant": [
    { quant: "none" },
    ...[...QUANTISERS.keys()].map((name) => ({ quant: `${name}:4` })),
  ],
  "schedule": ["prefill", "every:64", "step"].map((schedule) => ({ schedule })),
};

const label = (value: Record<string, unknown>) =>
  String(Object.values(value)[0]);

/** Why a method does not go with parts; undefined when it does. */
function refusal(
  method: AnyMethod,
  parts: Record<string, unknown>,
): string | undefined {
  const given = {
    ...("budget" in method.options ? { budget: 128 } : {}),
    ...method.exampleOptions?.(SHAPE),
    ...parts,
  };
  const missing = Object.keys(parts).find((name) => !(name in method.options));
  if (missing !== undefined) {
    return `It has no option ${missing}: that part is its own, or nothing to it`;
  }
  try {
    method.create(resolveOptions(method, given), SHAPE);
    return undefined;
  } catch (error) {
    const reason = (error as Error).message.replace(` "${method.name}"`, " it");
    // A table is a file of the user's; that it is missing here says nothing about the combination.
    return reason.endsWith("needs a file: none is given") ? undefined : reason;
  }
}

/** Footnotes, each text once. */
class Notes {
  readonly #texts: string[] = [];

  cell(reason: string | undefined): string {
    if (reason === undefined) return "yes";
    if (!this.#texts.includes(reason)) this.#texts.push(reason);
    return `no ${this.#texts.indexOf(reason) + 1}`;
  }

  text(): string {
    return this.#texts.map((text, i) => `${i + 1}. ${text}`).join("\n");
  }
}

function row(cells: readonly string[]): string {
  return `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]) {
  return [row(head), row(head.map(() => "---")), ...rows.map(row)].join("\n");
}

function combinations(): string {
  const notes = new Notes();
  const columns = Object.values(PARTS).flat();
  const methods = table(
    ["method", ...columns.map(label)],
    [...METHODS.values()].map((method) => [
      method.name,
      ...columns.map((part) => notes.cell(refusal(method, part))),
    ]),
  );
  const host = METHODS.get("snapkv")!;
  const pairs = table(
    ["snapkv with", ...columns.map(label)],
    columns.map((one) => [
      label(one),
      ...columns.map((other) =>
        notes.cell(refusal(host, { ...one, ...other }))
      ),
    ]),
  );
  return `## What goes with what

A part is exchanged by its option: \`--budget-policy\`, \`--merge\`, \`--quant\`, \`--schedule\`. What does not go together is
refused before any work.

${methods}

Two parts at once (of one kind the second counts):

${pairs}

${notes.text()}
`;
}

function describe(method: AnyMethod): string {
  const options = optionFlags(method);
  const facts = [
    ["kind", method.kind],
    ["acts", method.acts],
    ["layouts", method.granularities.join(", ")],
    ["prefill", method.altersPrefill ? "one of its own" : "shared"],
    ["paper", method.paper ?? "none"],
    ["differs", method.differs],
  ];
  return `### ${method.title}: \`${method.name}\`

${method.summary}.

${facts.map(([name, value]) => `- ${name}: ${value}`).join("\n")}

${
    table(
      ["option", "values", "default", "meaning"],
      options.map((flag) => [
        `\`${flag.flag}\``,
        flag.choices?.join(", ") ?? flag.type,
        flag.required
          ? "required"
          : `${JSON.stringify(flag.default)}${
            flag.source === undefined ? "" : ` (${flag.source})`
          }`,
        flag.description,
      ]),
    )
  }
`;
}

/** The page. */
export function methodsPage(): string {
  return `# Methods

Written by \`deno task docs:methods\` from the code; do not edit.

${combinations()}
## Each method

${[...METHODS.values()].map(describe).join("\n")}`;
}

/** The README with its method table exchanged. */
export function withMethodTable(readme: string): string {
  const rows = [...METHODS.values()].map((method) => [
    `\`${method.name}\``,
    method.summary,
    method.granularities.join(", "),
    method.paper === undefined ? "" : `[paper](${method.paper})`,
  ]);
  return readme.replace(
    /<!-- methods -->[^]*<!-- \/methods -->/,
    () =>
      `<!-- methods -->\n\n${
        alignedTable(["name", "what it does", "layouts", ""], rows)
      }\n\n<!-- /methods -->`,
  );
}

/** A table whose columns line up, as the formatter wants them. */
function alignedTable(head: string[], rows: string[][]): string {
  const all = [head, ...rows];
  const widths = head.map((_, i) =>
    Math.max(...all.map((cells) => cells[i]!.length))
  );
  const line = (cells: string[]) =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`;
  return [
    line(head),
    line(widths.map((width) => "-".repeat(width))),
    ...rows.map(line),
  ].join("\n");
}

if (import.meta.main) {
  Deno.mkdirSync("docs", { recursive: true });
  Deno.writeTextFileSync("docs/methods.md", methodsPage());
  const readme = Deno.readTextFileSync("README.md");
  Deno.writeTextFileSync("README.md", withMethodTable(readme));
}
