/**
 * Builds the native library.
 *
 *     deno task build [--werror]           build/libkvf.so from csrc/core and csrc/cpu
 *     deno task build:cuda [--arch=80,90a] build/libkvf_cuda.so from csrc/core and csrc/cuda
 *     deno task build:emulated             build/emulated/libkvf_cuda.so: the same sources, run on the CPU for tests
 *
 * What is up to date is skipped: an output is kept as long as its command, its compiler, its source and all headers are
 * the ones it was made from. Needs to read csrc and build, to write build, and to run cc (nvcc for CUDA, c++ for the
 * emulated build).
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, dirname, fromFileUrl, join } from "@std/path";
import { CHILD_ENV } from "./_child.ts";
import { emulate } from "./_emulate.ts";

/** The project's folder. */
export const ROOT = fromFileUrl(new URL("..", import.meta.url));

/** Compilers started at the same time. */
const PARALLEL = navigator.hardwareConcurrency;

/**
 * Flags of every C file. Contraction of a * b + c into a fused operation is off: a compiler may contract the vector body
 * of a loop and not its tail, and then an element's value depends on where in a batch it lies. The vector kernels, which
 * are written with explicit vectors, switch it on again. `errno` of the math functions is read nowhere.
 */
const C_FLAGS = [
  "-std=c11",
  "-fPIC",
  "-fvisibility=hidden",
  "-ffp-contract=off",
  "-fno-math-errno",
  "-Wall",
  "-Wextra",
  "-pthread",
  "-Icsrc",
];

/** Vector instructions of a file, by the end of its name; x86-64 only. */
const SIMD_FLAGS: [suffix: string, flags: string[]][] = [
  ["_avx2.c", ["-mavx2", "-mfma", "-mf16c", "-ffp-contract=fast"]],
  [
    "_avx512.c",
    [
      "-mavx512f",
      "-mavx512bw",
      "-mavx512vl",
      "-mavx512dq",
      "-mfma",
      "-mf16c",
      "-ffp-contract=fast",
    ],
  ],
  [
    "_avx512bf16.c",
    [
      "-mavx512f",
      "-mavx512bw",
      "-mavx512vl",
      "-mavx512dq",
      "-mavx512bf16",
      "-mfma",
      "-mf16c",
    ],
  ],
];

/** The emulated build goes through a prefill, and through the layers of a step, in so small parts that tests have several. */
const SMALL_CHUNKS = [
  "-DCU_CHUNK=64u",
  "-DCU_QUERY_CHUNK=128u",
  "-DCU_LINES_BYTES=1u",
  "-DCU_HELD_BLOCKS=11u",
];

/** GPUs that get machine code; newer ones compile the PTX of the last plain architecture. */
export const CUDA_ARCHITECTURES = "80,90a";

/** A build that cannot go on; the message is for the user. */
export class BuildError extends Error {
  /** Name of the class. */
  override readonly name = "BuildError";
}

/** A compiler. */
export type Compiler = "cc" | "c++" | "nvcc";

/** One run of a compiler. */
export interface Step {
  /** The compiler. */
  compiler: Compiler;
  /** Arguments without the output. */
  args: string[];
  /** Files that the output is made from, relative to the project. */
  inputs: string[];
  /** The output, relative to the project. */
  output: string;
  /** Let the compiler write the output itself: Deno may not write a file that it has permission to run. */
  inPlace?: boolean;
}

/** How a set of C files is compiled. */
export interface Variant {
  /** Folder of the objects and of their stamps, relative to the project. */
  folder: string;
  /** Flags besides the common ones. */
  flags: string[];
}

/** Paths of the files of a folder whose names end in `suffix`, sorted, relative to the project. */
export function sources(folder: string, suffix: string): string[] {
  try {
    return [...Deno.readDirSync(join(ROOT, folder))]
      .filter((entry) => entry.isFile && entry.name.endsWith(suffix))
      .map((entry) => `${folder}/${entry.name}`)
      .sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** All headers that a source of `folder` may include: a changed one makes its objects stale. */
export function headers(folder = "csrc"): string[] {
  const own = folder.startsWith("csrc") ? [] : [folder];
  return ["csrc", "csrc/core", "csrc/cpu", "csrc/cuda", "csrc/emulator", ...own]
    .flatMap((
      folder,
    ) => [...sources(folder, ".h"), ...sources(folder, ".cuh")]);
}

/** The step that compiles one C file. */
export function compileC(source: string, variant: Variant): Step {
  const simd = Deno.build.arch === "x86_64"
    ? SIMD_FLAGS.find(([suffix]) => source.endsWith(suffix))?.[1] ?? []
    : [];
  const name = `${basename(dirname(source))}_${basename(source, ".c")}.o`;
  return {
    compiler: "cc",
    args: [...C_FLAGS, ...variant.flags, ...simd, "-c", source],
    inputs: [source, ...headers(dirname(source))],
    output: `${variant.folder}/${name}`,
  };
}

/** Runs the steps whose outputs are stale, a few at a time, and returns how many ran. */
export async function runSteps(
  steps: Step[],
  folder: string,
): Promise<number> {
  await Deno.mkdir(join(ROOT, folder), { recursive: true });
  const stamps = await readStamps(folder);
  const queue: [Step, string][] = [];
  for (const step of steps) {
    const stamp = await stampOf(step);
    if (stamps[step.output] !== stamp || modified(step.output) === undefined) {
      queue.push([step, stamp]);
    }
  }
  const count = queue.length;
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const [step, stamp] = next;
      await runStep(step);
      stamps[step.output] = stamp;
    }
  };
  try {
    const workers = await Promise.allSettled(
      Array.from({ length: PARALLEL }, worker),
    );
    for (const result of workers) {
      if (result.status === "rejected") throw result.reason;
    }
  } finally {
    if (count > 0) await writeStamps(folder, stamps);
  }
  return count;
}

/** Compiles into a file of its own and renames it: whoever has the old library open keeps it whole. */
async function runStep(step: Step): Promise<void> {
  const part = step.inPlace ? step.output : `${step.output}.${Deno.pid}.tmp`;
  say(`${step.compiler} ${step.output}`);
  const { success, stderr } = await run(step.compiler, [
    ...step.args,
    "-o",
    part,
  ]);
  if (stderr !== "") say(stderr);
  if (!success) {
    throw new BuildError(`Cannot build ${step.output} as the compiler failed`);
  }
  if (!step.inPlace) {
    await Deno.rename(join(ROOT, part), join(ROOT, step.output));
  }
}

/** Runs a compiler in the project's folder. */
async function run(
  compiler: Compiler,
  args: string[],
): Promise<{ success: boolean; stdout: string; stderr: string }> {
  try {
    const { success, stdout, stderr } = await new Deno.Command(compiler, {
      env: CHILD_ENV,
      args,
      cwd: ROOT,
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    return {
      success,
      stdout: decoder.decode(stdout),
      stderr: decoder.decode(stderr).trimEnd(),
    };
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new BuildError(
      compiler !== "nvcc"
        ? `Cannot build the library as no C compiler was found: "${compiler}" is not on PATH; install gcc or clang (Debian and Ubuntu: apt install build-essential)`
        : `Cannot build the CUDA library as "nvcc" is not on PATH: install the CUDA toolkit, or put its bin folder on PATH; the CPU library needs no CUDA ("deno task build")`,
      { cause },
    );
  }
}

const versions = new Map<string, Promise<string>>();

/** What a compiler says about itself; another one makes everything stale. */
function version(compiler: Compiler): Promise<string> {
  let known = versions.get(compiler);
  if (known === undefined) {
    known = run(compiler, ["--version"]).then(({ stdout }) => stdout);
    versions.set(compiler, known);
  }
  return known;
}

/** Everything that an output depends on, as text. */
async function stampOf(step: Step): Promise<string> {
  return [
    await version(step.compiler),
    step.args.join(" "),
    ...step.inputs.map((path) => `${path} ${modified(path)}`),
  ].join("\n");
}

function modified(path: string): number | undefined {
  try {
    return Deno.statSync(join(ROOT, path)).mtime?.getTime();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

async function readStamps(folder: string): Promise<Record<string, string>> {
  try {
    return JSON.parse(
      await Deno.readTextFile(join(ROOT, folder, "stamps.json")),
    );
  } catch (error) {
    const missing = error instanceof Deno.errors.NotFound ||
      error instanceof SyntaxError;
    if (missing) return {};
    throw error;
  }
}

async function writeStamps(
  folder: string,
  stamps: Record<string, string>,
): Promise<void> {
  const path = join(ROOT, folder, "stamps.json");
  await Deno.writeTextFile(`${path}.${Deno.pid}.tmp`, JSON.stringify(stamps));
  await Deno.rename(`${path}.${Deno.pid}.tmp`, path);
}

/** Prints a line of progress. */
export function say(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${line}\n`));
}

/** The steps that compile the library's C files. */
export function librarySteps(folders: string[], variant: Variant): Step[] {
  return folders.flatMap((folder) => sources(`csrc/${folder}`, ".c"))
    .map((source) => compileC(source, variant));
}

async function buildCpu(werror: boolean): Promise<void> {
  const variant: Variant = {
    folder: "build/obj",
    flags: ["-O3", ...(werror ? ["-Werror"] : [])],
  };
  const compile = librarySteps(["core", "cpu"], variant);
  if (compile.length === 0) {
    throw new BuildError(
      "Cannot build libkvf.so as csrc/core and csrc/cpu hold no C file",
    );
  }
  await finish("build/libkvf.so", compile, variant, {
    compiler: "cc",
    args: ["-shared", "-pthread", "-Wl,-z,defs"],
    link: ["-lm"],
  });
}

/** Says that there is code for the warpgroup instructions, which only the target 90a has. */
const WARPGROUPS = "-DKVF_WARPGROUPS";

/** The steps that compile the CUDA build's objects. */
export function cudaSteps(architectures: string, variant: Variant): Step[] {
  const codes = architectures.split(",");
  const ptx = codes.at(-1)?.replace(/\D/g, "");
  const targets = [
    ...codes.map((code) => `arch=compute_${code},code=sm_${code}`),
    `arch=compute_${ptx},code=compute_${ptx}`,
  ].flatMap((target) => ["-gencode", target]);
  const kernels = sources("csrc/cuda", ".cu").map((source): Step => ({
    compiler: "nvcc",
    args: [
      "-std=c++17",
      "-O3",
      ...targets,
      ...(codes.includes("90a") ? [WARPGROUPS] : []),
      "-Xcompiler",
      "-fPIC,-fvisibility=hidden,-ffp-contract=off",
      "-Icsrc",
      "-c",
      source,
    ],
    inputs: [source, ...headers()],
    output: `${variant.folder}/cuda_${basename(source, ".cu")}.o`,
  }));
  return [...librarySteps(["core"], variant), ...kernels];
}

/** What a program or library of the CUDA build is linked with. */
export const CUDA_LINK = ["-cudart", "static", "-ldl", "-lpthread", "-lm"];

async function buildCuda(architectures: string): Promise<void> {
  const variant: Variant = { folder: "build/obj", flags: ["-O3"] };
  const compile = cudaSteps(architectures, variant);
  await finish("build/libkvf_cuda.so", compile, variant, {
    compiler: "nvcc",
    args: ["-shared", "-Xlinker", "-z,defs"],
    link: CUDA_LINK,
  });
}

/**
 * Writes the CUDA sources as plain C++ into the variant's folder and returns the steps that compile them, the emulator
 * and core.
 */
export async function emulatedSteps(variant: Variant): Promise<Step[]> {
  const folder = `${variant.folder}/src`;
  await Deno.mkdir(join(ROOT, folder), { recursive: true });
  const own = new Set(sources("csrc/emulator", ".cuh").map((p) => basename(p)));
  const originals = [".cu", ".cuh", ".h"].flatMap((suffix) =>
    sources("csrc/cuda", suffix)
  ).filter((path) => !own.has(basename(path)));
  for (const source of originals) {
    const text = emulate(await Deno.readTextFile(join(ROOT, source)));
    const to = join(ROOT, folder, basename(source).replace(/\.cu$/, ".cpp"));
    const old = await Deno.readTextFile(to).catch(() => undefined);
    if (old !== text) await Deno.writeTextFile(to, text);
  }
  const cpp = [
    ...sources("csrc/cuda", ".cu").map((source) =>
      `${folder}/${basename(source, ".cu")}.cpp`
    ),
    ...sources("csrc/emulator", ".cpp"),
  ].map((source): Step => ({
    compiler: "c++",
    args: [
      "-std=c++17",
      "-fPIC",
      "-fvisibility=hidden",
      "-ffp-contract=off",
      "-Wall",
      "-Wextra",
      "-Wno-unknown-pragmas",
      WARPGROUPS,
      "-pthread",
      ...SMALL_CHUNKS,
      ...variant.flags,
      `-I${folder}`,
      "-Icsrc/emulator",
      "-Icsrc",
      "-c",
      source,
    ],
    inputs: [source, ...headers()],
    output: `${variant.folder}/emulated_${basename(source, ".cpp")}.o`,
  }));
  return [...librarySteps(["core"], variant), ...cpp];
}

async function buildEmulated(): Promise<void> {
  const variant: Variant = { folder: "build/emulated", flags: ["-O2", "-g"] };
  const compile = await emulatedSteps(variant);
  await finish("build/emulated/libkvf_cuda.so", compile, variant, {
    compiler: "c++",
    args: ["-shared", "-pthread", "-Wl,-z,defs"],
    link: ["-ldl", "-lm"],
  });
}

/** Compiles and links a library, and says whether anything was stale. */
async function finish(
  output: string,
  compile: Step[],
  variant: Variant,
  by: { compiler: Compiler; args: string[]; link: string[] },
): Promise<void> {
  const objects = compile.map((step) => step.output);
  const ran = await runSteps(compile, variant.folder) + await runSteps([{
    compiler: by.compiler,
    args: [...by.args, ...objects, ...by.link],
    inputs: objects,
    output,
  }], variant.folder);
  say(ran === 0 ? `${output} is up to date` : `${output} is built`);
}

/** Runs `work`; a build error is printed without a stack and ends the process with status 1. */
export async function reportBuildErrors(
  work: () => Promise<void>,
): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) {
      say(
        `error: Cannot build as the folder build must be yours to write: ${error.message}`,
      );
    } else if (error instanceof BuildError) say(`error: ${error.message}`);
    else throw error;
    Deno.exitCode = 1;
  }
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: ["arch"],
    boolean: ["werror"],
    default: { arch: CUDA_ARCHITECTURES },
    unknown: (arg: string) => {
      if (["cpu", "cuda", "emulated"].includes(arg)) return true;
      throw new BuildError(
        `Cannot build as an argument is unknown: "${arg}"; "cpu", "cuda", "emulated", --arch=80,90a and --werror are known`,
      );
    },
  });
  const architectures = String(flags.arch);
  if (!/^\d+a?(,\d+a?)*$/.test(architectures)) {
    throw new BuildError(
      `Cannot build as --arch must be a list such as 80,90a: it is "${architectures}"`,
    );
  }
  if (flags._.includes("cuda")) await buildCuda(architectures);
  if (flags._.includes("emulated")) await buildEmulated();
  if (flags._.includes("cpu") || flags._.length === 0) {
    await buildCpu(flags.werror === true);
  }
}

if (import.meta.main) await reportBuildErrors(() => main(Deno.args));
