#!/usr/bin/env -S deno run -q --no-prompt --config=${KVF_HOME}/deno.json --allow-read=${KVF_HOME},. --allow-ffi=${KVF_HOME}/build/libkvf.so --allow-sys=systemMemoryInfo
// deno-lint-ignore-file no-console -- a script prints
/**
 * Scores one method on the needle test: evaluate_method.ts MODEL METHOD BUDGET
 * Needs KVF_HOME, the folder of the project, in the environment, and the library: deno task build.
 */
import { evaluate } from "@kvcache-factory/kvf";

const [model = "models/needle-6m", method = "snapkv", budget = "64"] =
  Deno.args;
const { table, manifest } = await evaluate({
  model,
  tasks: [{ name: "needle", options: { lengths: [512], depths: 5 } }],
  methods: [method],
  budgets: [Number(budget)],
});
console.log(table, JSON.stringify(manifest));
