/** The example scripts, copied to a folder outside of the project's sources and started as their first line says. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { RunMetaSchema } from "../../eval/records/schema.ts";
import { writeSafetensors } from "../../models/mod.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");
const MODEL = `${ROOT}/models/needle-6m`;

function filesOf(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesOf(`${folder}/${name}`) : [name]
  );
}

/** Runs a script in a folder of its own; its last line is its manifest. */
async function run(
  name: string,
  args: (folder: string) => string[],
): Promise<{ out: string; files: string[] }> {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  try {
    const text = Deno.readTextFileSync(`${ROOT}/tasks/scripts/${name}`);
    Deno.writeTextFileSync(`${folder}/${name}`, text);
    const [first] = text.split("\n");
    const [program, ...flags] = first!.replace("#!/usr/bin/env -S ", "")
      .replaceAll("${KVF_HOME}", ROOT).split(" ");
    assertEquals(program, "deno");
    const { code, stdout, stderr } = await new Deno.Command("deno", {
      env: CHILD_ENV,
      args: [...flags, name, ...args(folder)],
      cwd: folder,
      stdin: "null",
    }).output();
    const decoder = new TextDecoder();
    assertEquals(code, 0, decoder.decode(stderr));
    const out = decoder.decode(stdout).trimEnd();
    const manifest = RunMetaSchema.parse(
      JSON.parse(out.slice(out.lastIndexOf('{"schema"'))),
    );
    assertStringIncludes(manifest.permissions.join(" "), "net=none");
    assert(/^[0-9a-f]{64}$/.test(manifest.hashes.library!));
    return { out, files: filesOf(folder) };
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("evaluate_method.ts prints a table with FullKV beside the method", async () => {
  const { out } = await run("evaluate_method.ts", () => [MODEL, "h2o", "64"]);
  for (const name of ["fullkv", "h2o 64"]) assertStringIncludes(out, name);
});

Deno.test("new_method.ts compares a method of its own with others", async () => {
  const { out } = await run("new_method.ts", () => [MODEL, "64"]);
  for (const name of ["loudvalues 64", "snapkv 64"]) {
    assertStringIncludes(out, name);
  }
});

Deno.test("sweep_and_plot.ts keeps records and draws plots", async () => {
  const out = "mine";
  const { files } = await run("sweep_and_plot.ts", (folder) => {
    Deno.mkdirSync(`${folder}/${out}`);
    return [MODEL, out];
  });
  for (const name of ["records-1-of-1.jsonl", "score_by_budget.svg"]) {
    assert(files.includes(name), files.join());
  }
});

Deno.test("probe_tensors.ts prints the kept positions of each head", async () => {
  const numbers = (n: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.7));
  const { out } = await run("probe_tensors.ts", (folder) => {
    writeSafetensors(`${folder}/qkv.safetensors`, {
      q: { shape: [4, 60, 16], data: numbers(3840) },
      k: { shape: [2, 60, 16], data: numbers(1920) },
      v: { shape: [2, 60, 16], data: numbers(1920) },
    });
    return ["qkv.safetensors", "streamingllm", "6"];
  });
  assertStringIncludes(out, "head 1: 0 1 2 3 58 59");
});
