#!/usr/bin/env -S deno run -q --no-prompt --config=${KVF_HOME}/deno.json --allow-read=${KVF_HOME},. --allow-ffi=${KVF_HOME}/build/libkvf.so --allow-sys=systemMemoryInfo
// deno-lint-ignore-file no-console -- a script prints
/**
 * Defines a method and compares it with two others: new_method.ts MODEL BUDGET
 * Needs KVF_HOME, the folder of the project, in the environment, and the library: deno task build.
 */
import { defineEviction, evaluate, integer } from "@kvcache-factory/kvf";

const loudValues = defineEviction<{ window: number }>({
  name: "loudvalues",
  title: "Loud values",
  summary: "Tokens with long values that the last queries attend to",
  differs: "nothing known",
  options: {
    window: integer("Last queries that vote", { min: 1, default: 8 }),
  },
  observe: ({ window }) => ({ windowQueries: window }),
  protect: ({ window }) => ({ last: window }),
  score(layer, { window }) {
    using votes = layer.observationScores({
      window,
      groupReduce: "max",
      allRows: true,
    });
    using norm = layer.valueNorm();
    return votes.multiply(norm);
  },
});

const [model = "models/needle-6m", budget = "64"] = Deno.args;
const tasks = ["niah_single_1", "vt"].map((name) => ({
  name,
  options: { length: 512, count: 4 },
}));
const methods = [loudValues, "snapkv", "streamingllm"];
const { table, manifest } = await evaluate({
  model,
  tasks,
  methods,
  budgets: [Number(budget)],
});
console.log(table, JSON.stringify(manifest));
