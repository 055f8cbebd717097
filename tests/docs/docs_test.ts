/**
 * Every code block of the README and the documentation runs here, in the order of its file, in a folder of its own:
 * shell blocks as commands, TypeScript blocks as programs, JSON blocks are parsed. A block that needs a GPU or a
 * download says so in a comment before it and is counted aloud; `text` blocks are output.
 */
import { assert, assertEquals } from "@std/assert";
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { createProgram } from "../../cli/program.ts";
import { METHODS, optionFlags } from "../../methods/mod.ts";
import { type Block, blocksOf, commandsOf } from "./_blocks.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** Tasks that run this very test, or that other tests run as a whole. */
const ELSEWHERE = /^deno task (test|ok|quickstart|build:cuda|test:.*)( |$)/;

function documents(): string[] {
  const pages = [...Deno.readDirSync(`${ROOT}/docs`)]
    .filter(({ name }) => name.endsWith(".md"))
    .map(({ name }) => `docs/${name}`).sort();
  return ["README.md", "CONTRIBUTING.md", ...pages];
}

/** A place for the files that a document's blocks make. */
class Scratch implements Disposable {
  readonly path = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  readonly results = `results/docs-${crypto.randomUUID()}`;

  constructor() {
    Deno.writeTextFileSync(
      `${this.path}/prompt.txt`,
      "The grass is green. The sky is blue. ".repeat(20),
    );
  }

  /** Runs Deno here; paths into the project become absolute. */
  async deno(args: string[], cwd = this.path): Promise<string> {
    const { code, stdout, stderr } = await new Deno.Command("deno", {
      args,
      cwd,
      env: { ...CHILD_ENV, INIT_CWD: this.path, NO_COLOR: "1" },
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    const out = decoder.decode(stdout);
    assertEquals(code, 0, `${args.join(" ")}\n${out}${decoder.decode(stderr)}`);
    return out;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
    try {
      Deno.removeSync(`${ROOT}/${this.results}`, { recursive: true });
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

const inProject = (arg: string) =>
  arg.replace(/^(models|tests|tasks|docs|plans)\//, `${ROOT}/$1/`);

async function runCommand(scratch: Scratch, command: string[]): Promise<void> {
  const line = command.join(" ").replace(/^npx -y deno@\S+ /, "deno ");
  if (ELSEWHERE.test(line) || /^(source|alias|git|cd) /.test(line)) return;
  const words = line.startsWith("deno task kvf")
    ? command.slice(3)
    : command[0] === "kvf"
    ? command.slice(1)
    : undefined;
  if (words !== undefined) {
    await scratch.deno([
      ...["run", "-q", "--no-prompt", "--config", `${ROOT}/deno.json`],
      ...["-P=launcher", `${ROOT}/cli/kvf.ts`, ...words.map(inProject)],
    ]);
    return;
  }
  assert(
    command[0] === "deno",
    `Cannot run "${line}" as a command must start with deno or kvf`,
  );
  await scratch.deno(
    command.slice(1).map((arg) =>
      // Scripts that the document wrote lie in its own folder.
      /^\w+\.ts$/.test(arg)
        ? `${scratch.path}/${arg}`
        : arg.replace(/^results(?=\/|$)/, scratch.results)
    ),
    ROOT,
  );
}

async function runBlock(scratch: Scratch, block: Block): Promise<void> {
  switch (block.language) {
    case "sh":
      for (const command of commandsOf(block.text)) {
        await runCommand(scratch, command);
      }
      return;
    case "ts": {
      const path = `${scratch.path}/${block.name ?? `block_${block.line}.ts`}`;
      Deno.writeTextFileSync(path, block.text);
      await scratch.deno([
        ...["run", "-q", "--no-prompt", "--config", `${ROOT}/deno.json`],
        ...["--check", `--allow-read=${ROOT},${scratch.path}`],
        ...[`--allow-write=${scratch.path}`, "--allow-sys=systemMemoryInfo"],
        ...[`--allow-ffi=${ROOT}/build/libkvf.so`, path],
      ], ROOT);
      return;
    }
    case "json":
      JSON.parse(block.text);
      return;
    default:
      assert(
        block.language === "text",
        `${block.file}:${block.line}: a block must be sh, ts, json or text: it is "${block.language}"`,
      );
  }
}

for (const file of documents()) {
  const blocks = blocksOf(file, Deno.readTextFileSync(`${ROOT}/${file}`));
  const waiting = blocks.filter(({ needs }) => needs !== undefined);
  const note = waiting.length === 0
    ? ""
    : ` (SKIPPED blocks: ${
      waiting.map(({ line, needs }) => `line ${line} needs ${needs}`).join("; ")
    })`;
  Deno.test(`the code blocks of ${file} run${note}`, async () => {
    using scratch = new Scratch();
    for (const block of blocks) {
      if (block.needs !== undefined) continue;
      try {
        await runBlock(scratch, block);
      } catch (error) {
        throw new Error(`${file}:${block.line}: ${(error as Error).message}`, {
          cause: error,
        });
      }
    }
  });
}

Deno.test("links between the documents lead somewhere", () => {
  for (const file of documents()) {
    const folder = `${ROOT}/${file}`.replace(/\/[^/]*$/, "");
    const text = Deno.readTextFileSync(`${ROOT}/${file}`);
    for (const [, target] of text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
      if (/^https?:/.test(target!)) continue;
      assert(
        Deno.statSync(`${folder}/${target}`),
        `${file} links to ${target}`,
      );
    }
  }
});

Deno.test("docs/migrating.md names flags that exist", () => {
  const flags = new Set<string | undefined>(
    [...METHODS.values()].flatMap((method) =>
      optionFlags(method).map(({ flag }) => flag)
    ),
  );
  const walk = (command: CommandUnknownOpts): void => {
    for (const { long } of command.options) flags.add(long);
    command.commands.forEach(walk);
  };
  walk(createProgram(() => {}) as unknown as CommandUnknownOpts);
  const rows = Deno.readTextFileSync(`${ROOT}/docs/migrating.md`).split("\n")
    .filter((line) => line.startsWith("| "));
  assert(rows.length > 50);
  for (const row of rows) {
    const [, here = ""] = row.split(" | ");
    for (const [, words] of here.matchAll(/`([^`]*)`/g)) {
      for (const [flag] of words!.matchAll(/--[a-z-]+/g)) {
        assert(flags.has(flag), `${flag} of ${row}`);
      }
    }
  }
});
