// deno-lint-ignore-file no-console -- it prints a table
/**
 * What methods that act in every step cost: decode steps with the policy against steps with as many rows and no policy.
 *
 *     deno task bench:steps [--rows=4096] [--rounds=40] [--batch=1,8] [--threads=1] [--model=bundled|random] [--only=WORD]
 *
 * On the bundled model and on random weights of a larger shape. Both sides decode in turn, a few steps at a time, and the
 * processor time is compared round by round, so that other work on the machine disturbs both alike. The medians are
 * printed. The side without a policy grows by a row a step: it begins with half of its steps fewer rows than the other.
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
import { median } from "./peer/shape.ts";

/** Steps that run at a time. */
const STEPS = 4;

/** What is measured: a method's options, and those of the same cache without the policy's part in steps. */
const EVICTING: [
  title: string,
  method: string,
  own: Record<string, unknown>,
][] = [
  ["H2O", "h2o", {}],
  ["StreamingLLM", "streamingllm", {}],
  ["StreamingLLM, paper positions", "streamingllm", { compat: "paper" }],
  ["Scissorhands, decay", "scissorhands", { decay: 0.99, window: 8 }],
  ["Scissorhands, drawn", "scissorhands", { selection: "prob", window: 8 }],
];

/** Two policies whose steps are compared. */
interface Pair {
  name: string;
  without: Policy;
  step: Policy;
}

/** How much is measured. */
interface Amount {
  rows: number;
  rounds: number;
  batch: number;
}

/** A method with the options it is measured with. */
function policyOf(
  model: LanguageModel,
  name: string,
  given: Record<string, unknown>,
): Policy {
  const method = resolveMethod(name);
  return method.create(resolveOptions(method, given), model.shape);
}

function pairsOf(model: LanguageModel, { rows, rounds }: Amount): Pair[] {
  const fewer = Math.max(rows - Math.ceil(rounds * STEPS / 2), 16);
  const pairs = EVICTING.map(([name, method, own]) => {
    const { compat: _, decay: _decay, ...plain } = own;
    return {
      name,
      without: policyOf(model, method, { ...plain, budget: fewer }),
      step: policyOf(model, method, { ...own, budget: rows, schedule: "step" }),
    };
  });
  const without = policyOf(model, "fullkv", {});
  return [
    ...pairs,
    {
      name: "Quest, a quarter read",
      without,
      step: policyOf(model, "quest", { budget: rows / 4 }),
    },
    {
      name: "MiniCache",
      // Loses one row, so that its pages are its own: forks of a whole prompt would read the same ones.
      without: policyOf(model, "streamingllm", { budget: rows + 31 }),
      step: policyOf(model, "minicache", {}),
    },
  ];
}

/** One prompt, read once; layers are acted on in forks. */
async function readPrompt(
  model: LanguageModel,
  rows: number,
  policies: readonly Policy[],
): Promise<Sequence> {
  const { vocab } = model.native.config;
  const prompt = Array.from(
    { length: rows + 32 },
    (_, i) => (i * 7919 + 13) % vocab,
  );
  const parent = model.cache.sequence("kv_head");
  const prefill = parent.prefill(
    model.native,
    prompt,
    mergeObservations(policies.map(({ observe }) => observe)),
  );
  await prefill.layers(0, model.shape.layers);
  prefill.end();
  return parent;
}

/** Forks of the prompt on which the policy has acted. */
function start(
  model: LanguageModel,
  parent: Sequence,
  policy: Policy,
  batch: number,
): Sequence[] {
  return Array.from({ length: batch }, () => {
    const sequence = parent.fork();
    for (let layer = 0; layer < model.shape.layers; layer++) {
      sequence.act(policy, layer);
    }
    sequence.forget();
    return sequence;
  });
}

/** Milliseconds of processor time per step of both sides in turn, round by round. */
async function race(
  model: LanguageModel,
  sides: readonly Sequence[][],
  rounds: number,
): Promise<number[][]> {
  const times: number[][] = sides.map(() => []);
  for (let round = -1; round < rounds; round++) {
    for (const [i, batch] of sides.entries()) {
      const before = process.cpuUsage();
      await decode(model.native, model.cache, batch, STEPS);
      const { user, system } = process.cpuUsage(before);
      if (round >= 0) times[i]!.push((user + system) / 1e3 / STEPS);
    }
  }
  return times;
}

async function measure(
  title: string,
  model: LanguageModel,
  amounts: readonly Amount[],
  only: string,
): Promise<void> {
  const { layers, queryHeads, kvHeads, headDim } = model.shape;
  console.log(
    `${title}: ${layers} layers, ${queryHeads} heads, ${kvHeads} KV heads of ${headDim}, ${model.facts.cacheDtype} rows`,
  );
  for (const amount of amounts) {
    const pairs = pairsOf(model, amount).filter(({ name }) =>
      name.toLowerCase().includes(only.toLowerCase())
    );
    using parent = await readPrompt(
      model,
      amount.rows,
      pairs.flatMap(({ without, step }) => [without, step]),
    );
    for (const { name, without, step } of pairs) {
      using stack = new DisposableStack();
      const sides = [without, step].map((policy) =>
        start(model, parent, policy, amount.batch)
      );
      for (const sequence of sides.flat()) stack.use(sequence);
      const [plain, acting] = await race(model, sides, amount.rounds);
      report(name, amount, plain!, acting!);
    }
  }
}

function report(
  name: string,
  { rows, batch }: Amount,
  without: readonly number[],
  step: readonly number[],
): void {
  const cost = 100 * (median(step.map((time, i) => time / without[i]!)) - 1);
  console.log(
    `  ${name.padEnd(30)} ${rows} rows, batch ${batch}: ${
      median(without).toFixed(3)
    } ms without, ${median(step).toFixed(3)} ms with, ${cost >= 0 ? "+" : ""}${
      cost.toFixed(1)
    } %`,
  );
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: ["rows", "rounds", "batch", "threads", "model", "only"],
    default: {
      rows: "4096",
      rounds: "40",
      batch: "1",
      threads: "1",
      model: "",
      only: "",
    },
  });
  const rows = Number(flags.rows), rounds = Number(flags.rounds);
  const amounts = String(flags.batch).split(",").map((batch) => ({
    rows,
    rounds,
    batch: Number(batch),
  }));
  const options = { threads: Number(flags.threads) };
  const path = (name: string) => fromFileUrl(new URL(name, import.meta.url));
  if (flags.model !== "random") {
    using model = await LanguageModel.load(
      path("../models/needle-6m"),
      options,
    );
    await measure("Bundled model", model, amounts, String(flags.only));
  }
  if (flags.model === "bundled") return;
  using model = LanguageModel.random(
    path("shapes/llama_16_layers.json"),
    options,
  );
  await measure("Random weights", model, amounts, String(flags.only));
}

if (import.meta.main) await main(Deno.args);
