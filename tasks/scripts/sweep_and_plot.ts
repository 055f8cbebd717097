#!/usr/bin/env -S deno run -q --no-prompt --config=${KVF_HOME}/deno.json --allow-read=${KVF_HOME},. --allow-write=. --allow-ffi=${KVF_HOME}/build/libkvf.so --allow-sys=systemMemoryInfo
// deno-lint-ignore-file no-console -- a script prints
/**
 * Sweeps methods and budgets, keeps the records and draws the scores: sweep_and_plot.ts MODEL OUT
 * Needs KVF_HOME, the folder of the project, in the environment, and the library: deno task build.
 */
import { evaluate, renderSvg } from "@kvcache-factory/kvf";

const [model = "models/needle-6m", out = "results/script"] = Deno.args;
const { rows, figures, manifest } = await evaluate({
  model,
  tasks: [{ name: "niah_multikey_1", options: { length: 512, count: 4 } }],
  methods: ["snapkv", "h2o", "streamingllm"],
  budgets: [48, 96, 192],
  out,
});
for (const { name, score, residentBytes } of rows) {
  console.log(
    name,
    score.mean.toFixed(1),
    `${score.low.toFixed(1)} to ${score.high.toFixed(1)}`,
    residentBytes,
  );
}
for (const { name, plot } of figures) {
  Deno.writeTextFileSync(`${out}/${name}.svg`, await renderSvg(plot));
}
console.log(JSON.stringify(manifest));
