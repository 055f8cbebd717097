/** Every entry of every permission set in deno.json is needed: without it, a task of that set fails. */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { entriesOf, type PermissionSet, REASONS } from "../../cli/_reasons.ts";
import config from "../../deno.json" with { type: "json" };
import { SOURCES } from "../../eval/provenance/mod.ts";
import { sampleFolder, writeRecords } from "../eval/sample_records.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");
const SETS = config.permissions as unknown as Record<string, PermissionSet>;

/** A run under a permission set that needs every one of its entries. */
interface Probe {
  /** Arguments of Deno without the permissions; `OUT` is a fresh folder under results, `MINI` a project with three lines of C. */
  args: string[];
  /** True when the run happens in the miniature project. */
  mini?: boolean;
  /** True when OUT holds records before the run. */
  records?: boolean;
  /** Files that lie in OUT before the run. */
  files?: Record<string, string>;
  /** Entries whose need this run cannot show, and why. */
  excused?: Record<string, string>;
  /** Runs that show the need of single entries, where one run for all would take too long. */
  instead?: Record<string, string[]>;
}

const NEEDLE = [
  ...["--model", "models/needle-6m", "--method", "fullkv", "--out", "OUT"],
];
/** A model's config.json, so small that its weights are written at once. */
const SHAPE = JSON.stringify({
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000,
  "max_position_embeddings": 1024,
  "hidden_act": "silu",
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "vocab_size": 300,
});
const COMMIT = "the commit is a record's fact, not a need";
/** What {@linkcode sourceState} reads. */
const STATE = Object.fromEntries(
  [".git", ...SOURCES].filter((path) => path !== "models")
    .map((path) => [`read ./${path}`, COMMIT]),
);

const PROBES: Record<string, Probe> = {
  "build": { args: ["run", "MINI/tasks/build.ts", "cpu"], mini: true },
  "build-cuda": {
    args: ["run", "MINI/tasks/build.ts", "cuda", "--arch=80"],
    mini: true,
  },
  "build-emulated": {
    args: ["run", "MINI/tasks/build.ts", "emulated"],
    mini: true,
  },
  "gpu": {
    args: ["run", "MINI/tasks/test_gpu.ts", "--emulated", "one"],
    mini: true,
    excused: {
      "run nvcc": "needs a GPU",
      "run compute-sanitizer": "needs a GPU",
      "run timeout": "ends compute-sanitizer, which needs a GPU",
      "run deno": "the Deno tests need the whole library",
    },
  },
  "bench-gpu": {
    args: ["run", "tasks/bench_gpu.ts", "--help"],
    excused: Object.fromEntries(
      entriesOf(config.permissions["bench-gpu"]).map((
        { kind, entry },
      ) => [`${kind} ${entry}`, "needs a GPU"]),
    ),
  },
  "gpu-all": {
    args: [
      ...["run", "tasks/gpu_all.ts", "--emulated"],
      ...["--steps=bench", "--out=OUT"],
    ],
    excused: {
      "read ./tasks/gpu": "only a GPU gives measurements to show",
      "read ./results": "only a step that ran has a log",
      "run timeout": "the emulator's steps take minutes",
    },
  },
  "test-cuda": {
    args: ["test", "tests/ffi/structs_test.ts"],
    excused: {
      "ffi ./build/libkvf_cuda.so": "needs a GPU",
      "run deno": "needs a GPU",
    },
  },
  "test-emulated": {
    args: ["test", "tests/ffi/structs_test.ts"],
    excused: {
      "ffi ./build/emulated/libkvf_cuda.so":
        "only test:emulated builds the library",
      "run deno": "only test:emulated builds the library",
    },
  },
  "native": {
    args: ["run", "MINI/tasks/test_native.ts", "--sanitize=none"],
    mini: true,
  },
  "launcher": { args: ["run", "cli/kvf.ts", "methods"] },
  "needle": {
    args: [
      ...["run", "cli/main.ts", "eval", "needle", ...NEEDLE],
      ...["--lengths", "256", "--depths", "2"],
    ],
    excused: STATE,
  },
  "longbench": {
    // Chinese, as only that needs the word segmentation.
    args: [
      ...["run", "cli/main.ts", "eval", "longbench", ...NEEDLE],
      ...["--data", "OUT", "--datasets", "multifieldqa_zh"],
      ...["--max-new-tokens", "2"],
    ],
    files: {
      "multifieldqa_zh.jsonl": JSON.stringify({
        input: "谁？",
        context: "段落",
        answers: ["某人"],
        length: 6,
        dataset: "multifieldqa_zh",
        language: "zh",
        "all_classes": null,
        _id: "0",
      }),
    },
    excused: {
      ...STATE,
      "read ./data": "the probe's data lies in results",
    },
  },
  "ruler": {
    args: [
      ...["run", "cli/main.ts", "eval", "ruler", ...NEEDLE],
      ...["--tasks", "vt", "--lengths", "256", "--limit", "1"],
    ],
    excused: {
      ...STATE,
      "read ./data": "the probe's data lies in results",
    },
  },
  "tables": {
    args: [
      ...["run", "cli/tables.ts", "ruler", "--examples=1"],
      ...["--methods=fullkv", "--length=512", "--results=OUT"],
      ...["--page=OUT/page.md"],
    ],
    excused: {
      ...STATE,
      "write ./docs": "the probe's page lies in results",
    },
  },
  "docs": { args: ["run", "tasks/methods_page.ts"] },
  "sweep": {
    args: [
      ...["run", "cli/main.ts", "sweep", ...NEEDLE],
      ...["--lengths", "256", "--limit", "2"],
    ],
    excused: {
      ...STATE,
      "read ./data": "only tasks of the user's data read it",
      "read ./node_modules/jieba-wasm": "only Chinese tasks need it",
    },
    instead: {
      "read ./plans": [
        ...["run", "cli/main.ts", "sweep", "plans/example.json", "--dry-run"],
      ],
    },
  },
  "report": { args: ["run", "cli/main.ts", "report", "OUT"], records: true },
  "bench-sweep": {
    args: [
      ...["run", "tasks/bench_sweep.ts", "--prompts=1", "--length=256"],
      ...["--singles=1", "--target=0"],
    ],
  },
  "view": {
    args: [
      ...["run", "cli/main.ts", "view", "--model", "models/needle-6m"],
      ...["--needle", "128", "--method", "fullkv", "--max-new-tokens", "1"],
      ...["--attention", "0", "--images", "--out", "OUT/view.html"],
    ],
  },
  "bench-steps": {
    args: ["run", "tasks/bench_steps.ts", "--rows=64", "--rounds=1"],
  },
  "bench-model": {
    args: [
      ...["run", "tasks/bench_model.ts", "--device=cpu", "--layers=1"],
      ...["--config=OUT/shape.json", "--folder=OUT/folder", "--repeats=1"],
      ...["--length=64", "--rows=40"],
    ],
    files: { "shape.json": SHAPE },
    excused: {
      "read ./tasks/gpu": "the probe's shape lies in results",
      "ffi ./build/libkvf_cuda.so": "needs a GPU",
    },
  },
  "overheads": {
    args: [
      ...["run", "tasks/overheads.ts", "--lengths", "128"],
      ...["--budget", "40", "--repeats", "1"],
    ],
  },
  "peer": {
    args: ["run", "tasks/peer.ts"],
    excused: Object.fromEntries(
      [
        ...["read ./results/peer", "write ./results/peer"],
        ...["ffi ./build/libkvf.so", "ffi ./results/peer"],
      ].map((entry) => [entry, "llama.cpp is installed by hand"]),
    ),
  },
  "bench": {
    args: [
      ...["run", "cli/main.ts", "bench", "--model", "models/needle-6m"],
      ...["--lengths", "64", "--new-tokens", "2", "--repeats", "1"],
    ],
  },
  "browser": { args: ["test", "tests/browser/chromium_check.ts"] },
  "test": {
    args: ["test", "tests/methods/snapkv_test.ts"],
    excused: {
      "read ../shared/data": "tests of data that is not ours skip aloud",
      "write ./results": "this very test clears the probes' results away",
    },
    instead: {
      "read .": ["test", "tests/models/config_test.ts"],
      "write ./build": ["test", "tests/models/safetensors_test.ts"],
      "ffi ./build/libkvf.so": ["test", "tests/ffi/handles_test.ts"],
      "run deno": ["test", "--filter=status 2", "tests/cli/cli_test.ts"],
      "sys systemMemoryInfo": ["test", "tests/eval/provenance_test.ts"],
    },
  },
};

Deno.test("sets under which records are written can tell changed sources from the commit", () => {
  for (const [name, { read }] of Object.entries(SETS)) {
    if (!Array.isArray(read) || !read.includes("./.git")) continue;
    for (const source of SOURCES) {
      assert(read.includes(`./${source}`), `${name} reads no ${source}`);
    }
  }
});

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Whether a program is on PATH and starts; asked by a process of its own, as the tests may not start it. */
function has(program: string): boolean {
  return new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      "eval",
      `try { Deno.exit(new Deno.Command('${program}', { args: ['--version'] }).outputSync().code) } catch { Deno.exit(1) }`,
    ],
  }).outputSync().success;
}

/** Programs that some sets need and few machines have. */
const NEEDED: Record<string, string> = {
  "build-cuda": "nvcc",
  "browser": "/usr/bin/chromium",
};

/** A project with three lines of C, so that building it takes no time. */
function miniature(): string {
  const root = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const files: Record<string, string> = {
    "csrc/core/one.c": "int kvf_one(void);\nint kvf_one(void) { return 1; }\n",
    "csrc/cpu/two.c": "int kvf_two(void);\nint kvf_two(void) { return 2; }\n",
    "csrc/cuda/three.cu": 'extern "C" int kvf_three() { return 3; }\n',
    "csrc/emulator/four.cpp": "int kvf_four() { return 4; }\n",
    "tests/csrc/one_test.c": "int main(void) { return 0; }\n",
    "build/native_test": "",
  };
  for (
    const path of [
      "build",
      "test_native",
      "test_gpu",
      "_child",
      "_emulate",
      "_programs",
    ]
      .map((name) => `tasks/${name}.ts`)
  ) {
    files[path] = Deno.readTextFileSync(`${ROOT}/${path}`);
  }
  for (const [path, text] of Object.entries(files)) {
    Deno.mkdirSync(`${root}/${path.replace(/\/[^/]*$/, "")}`, {
      recursive: true,
    });
    Deno.writeTextFileSync(`${root}/${path}`, text);
  }
  return root;
}

/** Kind and entry of a permission. */
type Entry = ReturnType<typeof entriesOf>[number];

/** Deno's flags for some permissions. */
function flagsOf(entries: readonly Entry[], root: string): string[] {
  const absolute = (entry: string) => entry.replace(/^\.(?=\/|$)/, root);
  return [...Map.groupBy(entries, ({ kind }) => kind)].map(([kind, some]) =>
    kind.startsWith("ignore-")
      ? `--${kind}`
      : `--allow-${kind}=${some.map(({ entry }) => absolute(entry)).join()}`
  );
}

async function attempt(
  args: string[],
  entries: readonly Entry[],
  { mini = false, records = false, files = {} }: Probe,
): Promise<{ code: number; err: string }> {
  const root = mini ? miniature() : ROOT;
  const out = `${ROOT}/results/permissions-${crypto.randomUUID()}`;
  const place = (text: string) =>
    text.replaceAll("MINI", root).replaceAll("OUT", out);
  const flags = flagsOf(entries, root);
  const [verb, ...rest] = args;
  if (records) await writeRecords(out, sampleFolder());
  for (const [name, text] of Object.entries(files)) {
    Deno.mkdirSync(out, { recursive: true });
    Deno.writeTextFileSync(`${out}/${name}`, text);
  }
  try {
    const { code, stdout, stderr } = await new Deno.Command("deno", {
      env: CHILD_ENV,
      args: [
        ...[verb!, "-q", "--no-prompt", "--config", `${ROOT}/deno.json`],
        ...[...flags, ...rest.map(place)],
      ],
      cwd: ROOT,
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    return { code, err: decoder.decode(stderr) + decoder.decode(stdout) };
  } finally {
    for (const made of mini ? [root] : [out]) {
      if (exists(made)) Deno.removeSync(made, { recursive: true });
    }
  }
}

Deno.test("every permission set of deno.json has a probe", () => {
  assertEquals(Object.keys(PROBES).sort(), Object.keys(SETS).sort());
});

Deno.test("kvf doctor --permissions has a reason for every entry", () => {
  for (const set of Object.values(SETS)) {
    for (const { kind, entry } of entriesOf(set)) {
      assert(REASONS[`${kind} ${entry}`], `${kind} ${entry}`);
    }
  }
});

Deno.test("no task of deno.json runs with all permissions or asks for more", () => {
  for (const [name, { command }] of Object.entries(config.tasks)) {
    assert(!/(\s-A\b|--allow-all)/.test(command), name);
    for (const part of command.split("&&")) {
      if (!/deno (run|test) /.test(part)) continue;
      assert(part.includes("--no-prompt") && part.includes("-P"), name);
    }
  }
});

for (const [name, probe] of Object.entries(PROBES)) {
  const program = NEEDED[name];
  const entries = entriesOf(SETS[name] ?? {});
  const keyOf = ({ kind, entry }: Entry) => `${kind} ${entry}`;
  // A probe that excuses everything shows nothing: it is skipped aloud.
  const excuses = entries.map((one) => probe.excused?.[keyOf(one)]);
  const skipped = excuses.every((reason) => reason !== undefined)
    ? ` (SKIPPED: ${excuses[0]})`
    : program !== undefined && !has(program)
    ? ` (SKIPPED: no ${program})`
    : "";
  Deno.test({
    name:
      `without any one entry of the permission set "${name}" its task fails${skipped}`,
    ignore: skipped !== "",
    fn: async () => {
      const runs = new Map<string, string[]>();
      for (const one of entries) {
        const key = keyOf(one);
        if (probe.excused?.[key]) continue;
        const args = probe.instead?.[key] ?? probe.args;
        runs.set(key, args);
        const without = entries.filter((other) => other !== one);
        const { code } = await attempt(args, without, probe);
        assert(code !== 0, `"${name}" ran without ${key}`);
      }
      for (const args of new Set(runs.values())) {
        const { code, err } = await attempt(args, entries, probe);
        assertEquals(code, 0, `${args.join(" ")}: ${err}`);
      }
    },
  });
}
