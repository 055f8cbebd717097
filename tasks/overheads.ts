/**
 * What cache work costs beside prefill: SnapKV's scores, selection and gather as a share of prefill, and column masses
 * over all queries as a share of prefill's attention. Random weights, four layers of the shape of `deno task peer`.
 *
 *     deno task overheads [--lengths 2048,8192] [--budget 512] [--repeats 3] [--threads N]
 *
 * The time of attention is the difference to the same model with a window of one token, which still attends to about
 * {@linkcode WINDOWED} rows a query, within its tile of 96 queries and the page before. "As measured" takes that difference
 * alone for attention; "corrected" adds the part back that both models compute. Processor time is what counts, so that
 * other work on the machine disturbs little: the three runs take turns, and differences are taken within a turn.
 *
 * @module
 */
// deno-lint-ignore-file no-console -- a program that prints
import { parseArgs } from "@std/cli/parse-args";
import { LanguageModel } from "../eval/engine/mod.ts";
import type { Observation } from "../ffi/mod.ts";
import { resolveOptions, snapkv } from "../methods/mod.ts";
import type { Policy } from "../methods/types.ts";
import { median, prompt, SHAPE, timed, writeConfig } from "./peer/shape.ts";

const FOLDER = "results/overheads";
const LAYERS = 4;
/** Rows that a query attends to when only its own is in the window: a tile, and half a page. */
const WINDOWED = 112;
/** Rows by which a tile goes beyond the diagonal, on average over its queries. */
const BEYOND = 48;

/** Prefill of all layers; with a policy also its work on each. Processor milliseconds of both. */
async function prefill(
  model: LanguageModel,
  length: number,
  observe: Observation,
  policy?: Policy,
): Promise<{ prefill: number; act: number }> {
  using sequence = model.cache.sequence("kv_head");
  const run = sequence.prefill(model.native, prompt(length), observe);
  const total = { prefill: 0, act: 0 };
  for (let layer = 0; layer < LAYERS; layer++) {
    total.prefill += (await timed(() => run.layers(layer, 1))).cpu;
    if (policy === undefined) continue;
    total.act += (await timed(() => sequence.act(policy, layer))).cpu;
  }
  run.end();
  return total;
}

/** The shares at one length. */
async function measure(
  full: LanguageModel,
  windowed: LanguageModel,
  length: number,
  budget: number,
  repeats: number,
): Promise<void> {
  const policy = snapkv.create(
    resolveOptions(snapkv, { budget }),
    full.shape,
  );
  const plain: number[] = [],
    linear: number[] = [],
    mass: number[] = [],
    act: number[] = [];
  for (let i = 0; i <= repeats; i++) {
    const snap = await prefill(full, length, policy.observe ?? {}, policy);
    const without = await prefill(windowed, length, {});
    const masses = await prefill(full, length, { columnMasses: ["all"] });
    if (i === 0) continue; // warm-up
    plain.push(snap.prefill);
    act.push(snap.act);
    linear.push(without.prefill);
    mass.push(masses.prefill);
  }
  const rows = length / 2 + BEYOND, known = rows > WINDOWED;
  const less = (a: number[], b: number[]) =>
    median(a.map((time, i) => time - b[i]!));
  // Attention of a prompt within the window is all in both runs: nothing can be told apart.
  const measured = known ? less(plain, linear) : NaN;
  const attention = measured * rows / (rows - WINDOWED);
  const extra = less(mass, plain);
  const percent = (share: number) =>
    Number.isNaN(share) ? "–" : `${(100 * share).toFixed(2)} %`;
  console.log(
    `| ${length} | ${median(plain).toFixed(0)} | ${
      known ? `${measured.toFixed(0)} | ${attention.toFixed(0)}` : "– | –"
    } | ${median(act).toFixed(1)} | ${percent(median(act) / median(plain))} | ${
      extra.toFixed(0)
    } | ${percent(extra / measured)} | ${percent(extra / attention)} |`,
  );
}

async function main(args: string[]): Promise<void> {
  const flags = parseArgs(args, {
    string: ["lengths", "budget", "repeats", "threads"],
    default: {
      lengths: "2048,8192",
      budget: "512",
      repeats: "3",
      threads: "0",
    },
    unknown: (flag: string) => {
      throw new TypeError(
        `Cannot measure as every flag must be known: it is "${flag}"`,
      );
    },
  });
  Deno.mkdirSync(FOLDER, { recursive: true });
  const shape = { ...SHAPE, layers: LAYERS };
  writeConfig(`${FOLDER}/full.json`, shape);
  writeConfig(`${FOLDER}/window.json`, shape, 1);
  const threads = Number(flags.threads);
  using full = LanguageModel.random(`${FOLDER}/full.json`, { threads });
  using windowed = LanguageModel.random(`${FOLDER}/window.json`, { threads });
  console.log(`${full.device.info().name}; medians of ${flags.repeats}\n`);
  console.log(
    "| tokens | prefill ms | attention ms, as measured | corrected | SnapKV ms | of prefill | column mass ms | of attention, as measured | corrected |",
  );
  console.log(`|${" --- |".repeat(9)}`);
  for (const length of String(flags.lengths).split(",").map(Number)) {
    await measure(
      full,
      windowed,
      length,
      Number(flags.budget),
      Number(flags.repeats),
    );
  }
}

if (import.meta.main) await main(Deno.args);
