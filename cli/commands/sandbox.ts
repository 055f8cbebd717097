import { dirname } from "@std/path";
import { type CommandSpec, paths, text } from "../spec.ts";
import { deviceOf } from "./_shared.ts";

/** The toolkit's own code and packages: what a script needs to read in order to import it. */
const TOOLKIT = [
  "deno.json",
  "mod.ts",
  "build/libkvf.so",
  "build/libkvf_cuda.so",
  "cli/_sandboxed.ts",
  "compat",
  "eval",
  "ffi",
  "methods",
  "models",
  "tasks",
  "node_modules",
];

/** `kvf sandbox`: run somebody else's script with named folders and one library, nothing else. */
export const sandbox: CommandSpec = {
  path: ["sandbox"],
  declare(command) {
    command
      .description(
        "Run somebody else's script: it may read a model and data, write one folder and load the library, nothing else",
      )
      .argument("<script>", "the script, one file")
      .argument("[args...]", "arguments of the script, after --")
      .option("--model <dir>", "model folder that the script may read")
      .option("--data <dir>", "data folder that the script may read")
      .option("--out <dir>", "folder that the script may read and write")
      .option("--device <name>", "cpu, cuda or cuda:N", "cpu")
      .addHelpText(
        "after",
        `
The script finds the folders in its arguments as --model, --data and --out, with absolute paths. It imports the toolkit
as "@kvcache-factory/kvf". See docs/security.md for what the sandbox holds back and what it cannot.

Example:
  kvf sandbox theirs.ts --model models/needle-6m --out results/theirs -- --budget 64`,
      );
  },
  json: {
    status: "exit status of the script",
    output: "what it wrote to standard output",
    cut: "whether more than 16 MiB came, which were left out",
  },
  grants({ args, flags }) {
    return {
      read: paths(args[0], text(flags, "model"), text(flags, "data")),
      write: paths(text(flags, "out")),
      project: TOOLKIT,
      native: true,
      device: deviceOf(flags),
    };
  },
  script({ args, flags }, absolute) {
    const folders = ["model", "data", "out"].flatMap((name) => {
      const path = text(flags, name);
      return path === undefined ? [] : [`--${name}`, absolute(path)];
    });
    const path = absolute(args[0]!);
    return { path, args: [...folders, ...args.slice(1)], cwd: dirname(path) };
  },
  run() {
    throw new TypeError(
      "Cannot run a sandbox as the launcher must start it: use deno task kvf sandbox",
    );
  },
};
