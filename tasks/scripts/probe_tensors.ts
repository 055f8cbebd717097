#!/usr/bin/env -S deno run -q --no-prompt --config=${KVF_HOME}/deno.json --allow-read=${KVF_HOME},. --allow-ffi=${KVF_HOME}/build/libkvf.so --allow-sys=systemMemoryInfo
// deno-lint-ignore-file no-console -- a script prints
/**
 * Shows what a method keeps of recorded q, k and v: probe_tensors.ts FILE.safetensors METHOD BUDGET
 * Needs KVF_HOME, the folder of the project, in the environment, and the library: deno task build.
 */
import { probe } from "@kvcache-factory/kvf";

const [input = "", method = "snapkv", budget = "64"] = Deno.args;
const { positions, manifest } = await probe({
  input,
  method,
  options: { budget: Number(budget) },
});
positions.forEach((rows, head) =>
  console.log(`head ${head}: ${rows.join(" ")}`)
);
console.log(JSON.stringify(manifest));
