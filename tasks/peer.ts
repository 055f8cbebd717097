/**
 * Speed of the CPU library against llama.cpp, both sides in one process, in turns, on the same shape with random BF16
 * weights, both through their C libraries.
 *
 *     npm install --prefix results/peer --ignore-scripts @node-llama-cpp/linux-x64
 *     deno task peer [--prefill 2048] [--contexts 512,2048,8192] [--budget 512] [--repeats 5] [--steps 32]
 *         [--threads N] [--backend libggml-cpu-zen4.so] [--json FILE]
 *
 * The rate by CPU seconds is the one to trust on a machine that has other work, with `--threads 1`: llama.cpp's threads
 * wait for each other by spinning. llama.cpp runs with flash attention on and off, and the better of the two counts. Decode is measured behind a prompt of
 * each context, and once more on ours with the longest context compressed to `--budget` rows.
 *
 * @module
 */
// deno-lint-ignore-file no-console -- a program that prints
import { parseArgs } from "@std/cli/parse-args";
import { LanguageModel } from "../eval/engine/mod.ts";
import { decode, type Sequence } from "../ffi/mod.ts";
import { resolveOptions, snapkv } from "../methods/mod.ts";
import type { Policy } from "../methods/types.ts";
import { writeRandomGguf } from "./peer/gguf.ts";
import { Llama, type LlamaContext } from "./peer/llama.ts";
import {
  median,
  prompt,
  SHAPE,
  type Time,
  timed,
  writeConfig,
} from "./peer/shape.ts";

const FOLDER = "results/peer";
const LIBRARIES =
  `${FOLDER}/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64`;

/** One measured quantity: a side of a comparison and its repetitions. */
interface Series {
  what: string;
  side: string;
  /** Tokens that one repetition takes in or makes. */
  tokens: number;
  times: Time[];
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The model files of both sides. */
function writeModels(): { config: string; gguf: string } {
  const config = `${FOLDER}/config.json`, gguf = `${FOLDER}/random.gguf`;
  writeConfig(config, SHAPE);
  if (!exists(gguf)) writeRandomGguf(gguf, SHAPE);
  return { config, gguf };
}

/** Repetitions of every quantity. */
class Results {
  readonly series: Series[] = [];

  /** Adds one repetition. */
  note(what: string, side: string, tokens: number, time: Time): void {
    let series = this.series.find((s) => s.what === what && s.side === side);
    if (series === undefined) {
      series = { what, side, tokens, times: [] };
      this.series.push(series);
    }
    series.times.push(time);
    console.error(
      `${what}, ${side}: ${(1e3 * tokens / time.wall).toFixed(1)} tok/s`,
    );
  }
}

/** Reads a prompt with ours. */
async function ourPrefill(
  model: LanguageModel,
  tokens: number[],
  policy?: Policy,
): Promise<{ time: Time; sequence: Sequence }> {
  const sequence = model.cache.sequence("kv_head");
  const time = await timed(async () => {
    const prefill = sequence.prefill(model.native, tokens, policy?.observe);
    await prefill.layers(0, SHAPE.layers);
    prefill.end();
  });
  return { time, sequence };
}

/** Decode steps of ours on a copy of a sequence. */
async function ourDecode(
  model: LanguageModel,
  sequence: Sequence,
  steps: number,
): Promise<Time> {
  using copy = sequence.fork();
  await decode(model.native, model.cache, [copy], 2); // warm-up, and pages of its own
  return await timed(async () => {
    await decode(model.native, model.cache, [copy], steps);
  });
}

/** Decode steps of llama.cpp behind `length` tokens. */
function theirDecode(
  context: LlamaContext,
  length: number,
  steps: number,
): Promise<Time> {
  context.cut(length);
  context.run([300]);
  context.run([301]);
  return timed(() => {
    for (let i = 0; i < steps; i++) context.run([302 + i]);
  });
}

interface Settings {
  threads: number;
  repeats: number;
  steps: number;
  budget: number;
}

/** Prefill of both sides, in turns. */
async function racePrefill(
  ours: LanguageModel,
  theirs: Llama,
  length: number,
  { threads, repeats }: Settings,
  results: Results,
): Promise<void> {
  const tokens = prompt(length);
  const what = `prefill ${length}`;
  for (let i = 0; i <= repeats; i++) {
    const { time, sequence } = await ourPrefill(ours, tokens);
    sequence[Symbol.dispose]();
    if (i > 0) results.note(what, OURS, length, time);
    for (const flash of [true, false]) {
      using context = theirs.context({ length: length + 64, threads, flash });
      const their = await timed(() => context.run(tokens));
      if (i > 0) results.note(what, theirSide(flash), length, their);
    }
  }
}

/** Decode of both sides behind a prompt, in turns; with `compress` also ours with a compressed cache. */
async function raceDecode(
  ours: LanguageModel,
  theirs: Llama,
  length: number,
  { threads, repeats, steps, budget }: Settings,
  compress: boolean,
  results: Results,
): Promise<void> {
  const policy = snapkv.create(
    resolveOptions(snapkv, { budget }),
    ours.shape,
  );
  const tokens = prompt(length);
  const { sequence } = await ourPrefill(ours, tokens, policy);
  using full = sequence;
  using small = sequence.fork();
  for (let layer = 0; layer < SHAPE.layers; layer++) small.act(policy, layer);
  const room = length + steps + 64;
  using on = theirs.context({ length: room, threads, flash: true });
  using off = theirs.context({ length: room, threads, flash: false });
  on.run(tokens);
  off.run(tokens);
  const what = `decode at ${length}`;
  for (let i = 0; i < repeats; i++) {
    results.note(what, OURS, steps, await ourDecode(ours, full, steps));
    if (compress) {
      const time = await ourDecode(ours, small, steps);
      results.note(what, `${OURS}, ${budget} rows`, steps, time);
    }
    for (const [context, flash] of [[on, true], [off, false]] as const) {
      const time = await theirDecode(context, length, steps);
      results.note(what, theirSide(flash), steps, time);
    }
  }
}

const OURS = "kvf";

function theirSide(flash: boolean): string {
  return `llama.cpp, flash attention ${flash ? "on" : "off"}`;
}

/** One line per quantity: rates, and ours over the better of llama.cpp's. */
function table(results: Results): string {
  const rates = ({ tokens, times }: Series, clock: keyof Time) =>
    times.map((time) => 1e3 * tokens / time[clock]);
  const lines = [
    "| what | side | tok/s | range | of llama.cpp | tok per CPU second | of llama.cpp |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ];
  for (const series of results.series) {
    const { what, side } = series;
    const their = results.series.filter((one) =>
      one.what === what && !one.side.startsWith(OURS)
    );
    const ratio = (clock: keyof Time) => {
      const best = Math.max(...their.map((one) => median(rates(one, clock))));
      return side.startsWith(OURS)
        ? `${(median(rates(series, clock)) / best).toFixed(2)}x`
        : "";
    };
    const wall = rates(series, "wall");
    lines.push(
      `| ${what} | ${side} | ${median(wall).toFixed(1)} | ${
        Math.min(...wall).toFixed(1)
      } to ${Math.max(...wall).toFixed(1)} | ${ratio("wall")} | ${
        median(rates(series, "cpu")).toFixed(1)
      } | ${ratio("cpu")} |`,
    );
  }
  return lines.join("\n");
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: [
      "prefill",
      "contexts",
      "budget",
      "repeats",
      "steps",
      "threads",
      "backend",
      "json",
    ],
    default: {
      prefill: "2048",
      contexts: "512,2048,8192",
      budget: "512",
      repeats: "5",
      steps: "32",
      threads: "0",
    },
    unknown: (flag: string) => {
      throw new TypeError(
        `Cannot compare as every flag must be known: it is "${flag}"`,
      );
    },
  });
  if (!exists(LIBRARIES)) {
    throw new TypeError(
      `Cannot compare as llama.cpp must be there: run npm install --prefix ${FOLDER} --ignore-scripts @node-llama-cpp/linux-x64`,
    );
  }
  const numbers = (list: unknown) =>
    String(list).split(",").filter((n) => n !== "").map(Number);
  const { config, gguf } = writeModels();
  using ours = LanguageModel.random(config, { threads: Number(flags.threads) });
  const backend = flags.backend === undefined
    ? []
    : [String(flags.backend)] as const;
  using theirs = new Llama(LIBRARIES, gguf, ...backend);
  const settings = {
    threads: ours.device.info().threads,
    repeats: Number(flags.repeats),
    steps: Number(flags.steps),
    budget: Number(flags.budget),
  };
  const results = new Results();
  const before = ours.device.readBandwidth(512 * 2 ** 20);
  const contexts = numbers(flags.contexts);
  for (const length of numbers(flags.prefill)) {
    await racePrefill(ours, theirs, length, settings, results);
  }
  for (const length of contexts) {
    const compress = length === Math.max(...contexts);
    await raceDecode(ours, theirs, length, settings, compress, results);
  }
  const after = ours.device.readBandwidth(512 * 2 ** 20);
  const device = ours.device.info();
  console.log(
    `${device.name}; reads ${(before / 1e9).toFixed(1)} GB/s before, ${
      (after / 1e9).toFixed(1)
    } after; medians of ${settings.repeats}\n`,
  );
  console.log(table(results));
  if (flags.json !== undefined) {
    Deno.writeTextFileSync(
      String(flags.json),
      JSON.stringify({ device, before, after, series: results.series }),
    );
  }
}

if (import.meta.main) await main(Deno.args);
