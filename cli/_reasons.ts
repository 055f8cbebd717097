/**
 * Why the permission sets of deno.json hold what they hold, entry by entry. A test keeps both in step.
 *
 * @module
 */

const SOURCES =
  "whether the project's sources are still those of the commit, so that records of others are not taken for theirs";

/** Kind and entry of a permission, and what it is for. */
export const REASONS: Readonly<Record<string, string>> = {
  "read .": "the tests' own files, goldens and sources",
  "read ../shared/data":
    "sample data of others, where it lies beside the project",
  "read ./.git": "the commit that goes into every record",
  "read ./cli": SOURCES,
  "read ./compat": SOURCES,
  "read ./deno.json": SOURCES,
  "read ./deno.lock": SOURCES,
  "read ./eval": SOURCES,
  "read ./ffi": SOURCES,
  "read ./methods": SOURCES,
  "read ./mod.ts": SOURCES,
  "read ./tasks": SOURCES,
  "read ./build": "what was compiled before, to see what is stale",
  "read ./build/libkvf.so": "the library, whose hash goes into every run",
  "read ./csrc":
    "the sources of the library: to compile them, or whether they are still those of the commit",
  "read ./README.md": "the page whose table of methods is written",
  "write ./README.md": "the table of methods",
  "read ./data": "data of the user's: LongBench, ready RULER records, essays",
  "read ./models": "model folders",
  "read ./node_modules/@resvg/resvg-wasm":
    "the rasteriser that makes PNG files",
  "read ./node_modules/dejavu-fonts-ttf": "the font of the pictures",
  "read ./node_modules/jieba-wasm":
    "the Chinese word segmentation of the metrics",
  "read ./plans": "plans of sweeps",
  "read ./results": "records of earlier runs, so that none is computed twice",
  "read ./results/peer": "llama.cpp, where it was installed",
  "write ./results/peer": "a model file for llama.cpp, with random weights",
  "ffi ./results/peer": "llama.cpp, to be compared with",
  "read ./tasks/shapes": "shapes of models that have no weights",
  "read ./tests/csrc": "the C tests",
  "write ./build": "compiled files",
  "write ./docs": "the pages that are written from the code",
  "write ./results": "records, tables and pictures",
  "ffi ./build/libkvf.so": "the library that runs the model",
  "ffi ./build/libkvf_cuda.so": "the library that runs the model on a GPU",
  "ffi ./build/emulated/libkvf_cuda.so":
    "the CUDA sources, compiled for the processor, for tests",
  "write ./build/browser": "the page and pictures of the browser's test",
  "read /usr/bin/chromium": "whether the browser of the report's test is there",
  "run /usr/bin/chromium": "the browser of the report's test",
  "sys homedir": "asked for by playwright-core as it starts",
  "env TMPDIR": "where the browser's profile goes: build/browser",
  "env __IS_WSL_TEST__": "keeps playwright-core from looking below /proc/sys",
  "ignore-env all others":
    "playwright-core asks for many, all of which read as unset",
  "run cc": "the C compiler",
  "run c++": "the C++ compiler of the emulated CUDA build",
  "run ./build/gpu_bench": "the program that times the GPU",
  "read ./tasks/gpu": "the shape of the model that is timed",
  "run compute-sanitizer": "the memory checker of the GPU",
  "run nvcc": "the CUDA compiler",
  "run timeout":
    "steps of a run on a GPU, each ended with all its processes when its time is over",
  "run deno":
    "commands in processes of their own, each with permissions of its own",
  "run ./build/native_test": "the C tests, one after the other",
  "sys systemMemoryInfo":
    "the memory that is free, so that an evaluation keeps within it",
  "env INIT_CWD":
    "the folder that relative paths of the command line start from",
};

/** What a kind of permission allows, in words. */
export const KINDS: Readonly<Record<string, string>> = {
  read: "read",
  write: "write",
  ffi: "load as native code",
  run: "start, unconfined",
  env: "read and set for itself the environment variable",
  "ignore-env": "ask in vain for environment variables:",
  sys: "ask the system for",
  net: "connect to",
};

/** A set as it stands in deno.json. */
export type PermissionSet = Readonly<
  Record<
    string,
    readonly string[] | { allow: readonly string[]; ignore: true }
  >
>;

/**
 * Kind and entry of every permission of a set, in the set's order. What is ignored, that is answered as if it were not
 * there, has a kind of its own.
 */
export function entriesOf(
  set: PermissionSet,
): { kind: string; entry: string }[] {
  return Object.entries(set).flatMap(([kind, value]) => {
    const allowed = "allow" in value ? value.allow : value;
    return [
      ...allowed.map((entry) => ({ kind, entry })),
      ...("allow" in value
        ? [{ kind: `ignore-${kind}`, entry: "all others" }]
        : []),
    ];
  });
}
