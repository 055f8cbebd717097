/**
 * Measures the CUDA build on random weights of a model's shape and prints what it took beside what the hardware allows.
 *
 *     deno task bench:gpu [--config=FILE] [--lengths=8192,32768] [--batch=32] [--rows=1024] [--repeats=20]
 *                         [--only=decode,packed] [--peer=FILE] [--arch=80,90a] [--json]
 *
 * `--only` measures some of products, attention, same, scarce, decode, prefill, packed and programs; prefill's floor needs
 * products and attention. `same` compares tokens of a sequence alone and among others, `scarce` logits of a prompt with ever
 * less memory: they fail where they differ. `--peer` names the output of tasks/gpu/peer_torch.py of the same machine. The table's floors follow from the copy
 * bandwidth and the rate of matrix products of the same run. Needs a GPU and nvcc; to read csrc, build and the files it is
 * given, to write build, and to run cc, nvcc and build/gpu_bench.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { join } from "@std/path";
import { CHILD_ENV } from "./_child.ts";
import { readModelConfig } from "../models/mod.ts";
import {
  BuildError,
  CUDA_ARCHITECTURES,
  CUDA_LINK,
  cudaSteps,
  headers,
  reportBuildErrors,
  ROOT,
  runSteps,
  say,
  type Step,
  type Variant,
} from "./build.ts";
import { type Measurement, table } from "./gpu/_table.ts";

const PROGRAM = "build/gpu_bench";
/** What `--only` may name. */
const SECTIONS = [
  "products",
  "attention",
  "same",
  "scarce",
  "decode",
  "prefill",
  "packed",
  "programs",
];
const FLAGS = [
  "config",
  "lengths",
  "batch",
  "rows",
  "repeats",
  "only",
  "peer",
  "arch",
] as const;

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: [...FLAGS],
    boolean: ["json"],
    default: {
      config: join(ROOT, "tasks/gpu/llama-3-8b.json"),
      lengths: "8192,32768",
      batch: "32",
      rows: "1024",
      repeats: "20",
      arch: CUDA_ARCHITECTURES,
    },
    unknown: (arg: string) => {
      throw new BuildError(
        `Cannot measure the GPU as an argument is unknown: "${arg}"; ${
          FLAGS.map((name) => `--${name}`).join(", ")
        } and --json are known`,
      );
    },
  });
  const lengths = String(flags.lengths).split(",").map((n) =>
    count("lengths", n)
  );
  if (lengths.length !== 2) {
    throw new BuildError(
      `Cannot measure the GPU as --lengths must be two numbers: it is "${flags.lengths}"`,
    );
  }
  const only = flags.only === undefined ? [] : String(flags.only).split(",");
  const stranger = only.find((name) => !SECTIONS.includes(name));
  if (stranger !== undefined) {
    throw new BuildError(
      `Cannot measure the GPU as --only must name ${
        SECTIONS.join(", ")
      }: "${stranger}"`,
    );
  }
  const shape = readModelConfig(String(flags.config));
  if (shape.experts > 0) {
    throw new BuildError(
      `Cannot measure the GPU as the model must have no experts: it has ${shape.experts}`,
    );
  }
  const peer = flags.peer === undefined
    ? []
    : lines(await Deno.readTextFile(String(flags.peer)));
  await compile(String(flags.arch));
  const measured = await run([
    shape.layers,
    shape.hidden,
    shape.queryHeads,
    shape.kvHeads,
    shape.headDim,
    shape.intermediate,
    shape.vocab,
    ...lengths,
    count("batch", String(flags.batch)),
    count("rows", String(flags.rows)),
    count("repeats", String(flags.repeats)),
    ...(only.length > 0 ? [only.join(",")] : []),
  ]);
  const text = flags.json
    ? JSON.stringify({ shape: flags.config, measured, peer }, null, 2)
    : table(shape, measured, peer);
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
  const failed = measured.find(({ what }) => what === "failed");
  if (failed) {
    throw new BuildError(
      `Cannot measure everything as ${failed.in} failed: ${failed.message}`,
    );
  }
  const other = measured.find(({ equal }) => equal === false);
  if (other?.what === "same") {
    throw new BuildError(
      `Cannot trust what was measured as a sequence's tokens must be the same alone and among ${other.batch}: ${other.equal_tokens} of ${other.steps} are`,
    );
  }
  if (other) {
    throw new BuildError(
      `Cannot trust what was measured as a prompt's logits must not depend on memory: with ${other.free_bytes} free bytes they are others`,
    );
  }
}

function count(name: string, text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new BuildError(
    `Cannot measure the GPU as --${name} must be a whole number above 0: it is "${text}"`,
  );
}

/** JSON lines; anything else is no measurement. */
function lines(text: string): Measurement[] {
  return text.split("\n").filter((line) => line.startsWith("{")).map((line) =>
    JSON.parse(line) as Measurement
  );
}

async function compile(arch: string): Promise<void> {
  const variant: Variant = { folder: "build/obj", flags: ["-O3"] };
  const library = cudaSteps(arch, variant);
  const source = "csrc/bench/gpu_bench.cu";
  const bench: Step = {
    compiler: "nvcc",
    args: ["-std=c++17", "-O3", "-Icsrc", "-c", source],
    inputs: [source, ...headers()],
    output: `${variant.folder}/gpu_bench.o`,
  };
  const objects = [bench, ...library].map((step) => step.output);
  await runSteps([...library, bench], variant.folder);
  await runSteps([{
    compiler: "nvcc",
    args: [...objects, ...CUDA_LINK],
    inputs: objects,
    output: PROGRAM,
    inPlace: true,
  }], variant.folder);
}

/** Runs the program; its lines are shown as they come, so that a fault costs none that was measured. */
async function run(args: (number | string)[]): Promise<Measurement[]> {
  const child = new Deno.Command(join(ROOT, PROGRAM), {
    env: CHILD_ENV,
    args: args.map(String),
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  let text = "";
  for await (
    const part of child.stdout.pipeThrough(new TextDecoderStream())
  ) {
    text += part;
    Deno.stderr.writeSync(new TextEncoder().encode(part));
  }
  const { code } = await child.status;
  const measured = lines(text);
  const said = measured.some(({ what, equal }) =>
    what === "failed" || equal === false
  );
  if (code !== 0 && !said) {
    say(`the program ended with status ${code}`);
    measured.push({ what: "failed", in: "the program", message: `${code}` });
  }
  return measured;
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
