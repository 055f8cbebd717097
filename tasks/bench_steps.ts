// deno-lint-ignore-file no-console -- it prints a table
/**
 * What methods that act in every step cost: decode steps with the policy against steps with the same rows and no policy.
 *
 *     deno task bench:steps [--rows=4096] [--rounds=40] [--threads=1]
 *
 * On the bundled model and on random weights of a larger shape. Both sides decode in turn, a few steps at a time, and the
 * least processor time of many rounds counts for each, so that other work on the machine disturbs both alike and little.
 *
 * @module
 */
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl } from "@std/path";
import { LanguageModel } from "../eval/engine/mod.ts";
import { decode, mergeObservations, type Sequence } from "../ffi/mod.ts";
import { resolveMethod, resolveOptions } from "../methods/mod.ts";
import type { Policy } from "../methods/types.ts";

/** Steps that run at a time. */
const STEPS = 4;

/** What is measured: a method's options, and those of the same cache without the policy's part in steps. */
const CASES: [title: string, method: string, own: Record<string, unknown>][] = [
  ["H2O", "h2o", {}],
  ["StreamingLLM", "streamingllm", {}],
  ["StreamingLLM, paper positions", "streamingllm", { compat: "paper" }],
  ["Scissorhands, decay", "scissorhands", { decay: 0.99, window: 8 }],
  ["Scissorhands, drawn", "scissorhands", { selection: "prob", window: 8 }],
];

/** A method with the options it is measured with. */
function policyOf(
  model: LanguageModel,
  name: string,
  given: Record<string, unknown>,
): Policy {
  const method = resolveMethod(name);
  return method.create(resolveOptions(method, given), model.shape);
}

/** One prompt, read once, and a fork of it on which each policy has acted. */
async function start(
  model: LanguageModel,
  rows: number,
  policies: readonly Policy[],
): Promise<Sequence[]> {
  const { vocab } = model.native.config;
  const prompt = Array.from(
    { length: rows + 32 },
    (_, i) => (i * 7919 + 13) % vocab,
  );
  using parent = model.cache.sequence("kv_head");
  const prefill = parent.prefill(
    model.native,
    prompt,
    mergeObservations(policies.map(({ observe }) => observe)),
  );
  await prefill.layers(0, model.shape.layers);
  prefill.end();
  return policies.map((policy) => {
    const sequence = parent.fork();
    for (let layer = 0; layer < model.shape.layers; layer++) {
      sequence.act(policy, layer);
    }
    sequence.forget();
    return sequence;
  });
}

/** Fewest milliseconds of processor time per step of each sequence, in turn. */
async function race(
  model: LanguageModel,
  sequences: readonly Sequence[],
  rounds: number,
): Promise<number[]> {
  const best = sequences.map(() => Infinity);
  for (let round = 0; round < rounds; round++) {
    for (const [i, sequence] of sequences.entries()) {
      const before = process.cpuUsage();
      await decode(model.native, model.cache, [sequence], STEPS);
      const { user, system } = process.cpuUsage(before);
      best[i] = Math.min(best[i]!, (user + system) / 1e3 / STEPS);
    }
  }
  return best;
}

async function measure(
  title: string,
  model: LanguageModel,
  rows: number,
  rounds: number,
): Promise<void> {
  const { layers, queryHeads, kvHeads, headDim } = model.shape;
  console.log(
    `${title}: ${layers} layers, ${queryHeads} heads, ${kvHeads} KV heads of ${headDim}, ${model.facts.cacheDtype} rows`,
  );
  const pairs = CASES.map(([name, method, own]) => {
    const { compat: _, decay: _decay, ...plain } = own;
    return {
      name,
      without: policyOf(model, method, { ...plain, budget: rows }),
      step: policyOf(model, method, {
        ...own,
        budget: rows,
        schedule: "step",
      }),
    };
  });
  pairs.push({
    name: "Quest, a quarter read",
    without: policyOf(model, "fullkv", {}),
    step: policyOf(model, "quest", { budget: rows / 4 }),
  });
  using stack = new DisposableStack();
  const sequences = await start(
    model,
    rows,
    pairs.flatMap(({ without, step }) => [without, step]),
  );
  for (const sequence of sequences) stack.use(sequence);
  for (const [i, { name }] of pairs.entries()) {
    const [without, step] = await race(
      model,
      sequences.slice(2 * i, 2 * i + 2),
      rounds,
    );
    report(name, rows, without!, step!);
  }
}

function report(
  name: string,
  rows: number,
  without: number,
  step: number,
): void {
  const cost = 100 * (step / without - 1);
  console.log(
    `  ${name.padEnd(30)} ${rows} rows: ${without.toFixed(3)} ms without, ${
      step.toFixed(3)
    } ms with, ${cost >= 0 ? "+" : ""}${cost.toFixed(1)} %`,
  );
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, { string: ["rows", "rounds", "threads"] });
  const rows = Number(flags.rows ?? 4096), rounds = Number(flags.rounds ?? 40);
  const threads = Number(flags.threads ?? 1);
  const path = (name: string) => fromFileUrl(new URL(name, import.meta.url));
  {
    using model = await LanguageModel.load(path("../models/needle-6m"), {
      threads,
    });
    await measure("Bundled model", model, rows, rounds);
  }
  using model = LanguageModel.random(path("shapes/llama_16_layers.json"), {
    threads,
  });
  await measure("Random weights", model, rows, rounds);
}

if (import.meta.main) await main(Deno.args);
