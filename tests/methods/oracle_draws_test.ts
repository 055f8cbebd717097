/** Rows and merges that are drawn: how often each one comes must be what the definitions say. */
import { assert, assertEquals } from "@std/assert";
import { applyMethod } from "../../eval/apply.ts";
import { resolveMethod, resolveOptions } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";
import { noise } from "./oracle/cases.ts";
import { type Choice, ranked, upTo } from "./oracle/choice.ts";
import { choicesOf } from "./oracle/expect.ts";
import {
  columnSums,
  type Layer,
  probabilities,
  type Row,
} from "./oracle/layer.ts";

const SEEDS = 1000;
const TOKENS = 14;
const SHAPE = { queryHeads: 2, kvHeads: 1, headDim: 32 };

function layerOf(scale: number): Layer {
  const make = (heads: number, seed: number) =>
    noise(heads * TOKENS * SHAPE.headDim, seed, scale);
  return {
    ...SHAPE,
    tokens: TOKENS,
    q: make(2, 31),
    k: make(1, 32),
    v: make(1, 33),
  };
}

/** Every seed's outcome of a method. */
function runs(input: Layer, name: string, options: Record<string, unknown>) {
  using device = openDevice();
  return upTo(SEEDS).map((seed) =>
    applyMethod({
      ...input,
      shape: SHAPE,
      method: resolveMethod(name),
      options: { ...options, seed },
      granularity: "kv_head",
      device,
      rows: true,
    })
  );
}

/** What the one head keeps where nothing is drawn. */
function undrawn(
  input: Layer,
  name: string,
  given: Record<string, unknown>,
): Choice {
  const options = resolveOptions(resolveMethod(name), given);
  const task = { input, storedHeads: 1, layer: 0, layers: 1, options };
  return choicesOf(name, task)[0]![0]!;
}

/** Chance of each candidate to be among `count` that are drawn one by one, without replacement, by weight. */
function inclusion(weights: number[], count: number): number[] {
  const total = weights.reduce((a, b) => a + b, 0);
  if (count === 0) return weights.map(() => 0);
  const chances = weights.map((w) => w / total);
  weights.forEach((w, first) => {
    const rest = inclusion(weights.with(first, 0), count - 1);
    rest.forEach((p, i) => chances[i]! += w / total * p);
  });
  return chances;
}

/** Five standard deviations around the expected share. */
function assertShare(hits: number, chance: number, what: string): void {
  const room = 5 * Math.sqrt(chance * (1 - chance) / SEEDS) + 1e-9;
  assert(
    Math.abs(hits / SEEDS - chance) <= room,
    `${what}: ${hits} of ${SEEDS}, expected a share of ${chance}`,
  );
}

/** Checks how often each candidate is drawn. */
function assertDrawn(
  kept: number[][],
  candidates: number[],
  scores: Row,
  { count, temperature }: { count: number; temperature: number },
): void {
  const weights = candidates.map((p) =>
    temperature > 0 ? Math.exp(scores[p]! / temperature) : 1
  );
  const chances = inclusion(weights, count);
  candidates.forEach((p, i) =>
    assertShare(
      kept.filter((rows) => rows.includes(p)).length,
      chances[i]!,
      `position ${p} at temperature ${temperature}`,
    )
  );
}

for (const temperature of [0, 0.05, 0.3]) {
  for (const count of [1, 2]) {
    Deno.test(`nacl draws ${count} of the rows that are not the best at temperature ${temperature}`, () => {
      const input = layerOf(1);
      const budget = 7;
      const options = { budget, proxies: 3, randomRows: count, temperature };
      const kept = runs(input, "nacl", options)
        .map(({ positions }) => positions[0]!);
      const choice = undrawn(input, "nacl", { budget, proxies: 3 });
      const order = ranked(choice.candidates, choice.scores);
      const best = order.slice(0, budget - 3 - count);
      for (const rows of kept) {
        assertEquals(rows.length, budget);
        for (const p of [...choice.fixed, ...best]) assert(rows.includes(p));
      }
      const others = order.slice(best.length);
      assertDrawn(kept, others, choice.scores, { count, temperature });
    });
  }
  Deno.test(`scissorhands draws rows by importance at temperature ${temperature}`, () => {
    const input = layerOf(1);
    const own = { sinks: 1, window: 2, budget: 5 };
    const options = { ...own, selection: "prob", temperature };
    const kept = runs(input, "scissorhands", options)
      .map(({ positions }) => positions[0]!);
    const choice = undrawn(input, "scissorhands", own);
    for (const rows of kept) {
      assertEquals(rows.length, 5);
      for (const p of choice.fixed) assert(rows.includes(p));
    }
    assertDrawn(kept, choice.candidates, choice.scores, {
      count: 2,
      temperature,
    });
  });
}

Deno.test("cam hands a value on as often as its attention compares with the receivers' highest", () => {
  const window = 2;
  for (const first of [3, 6, 9]) {
    const input = layerOf(0.3);
    const means = columnSums(
      upTo(2).flatMap((head) => probabilities(input, head, TOKENS - window)),
      TOKENS,
    ).map((x) => x / 4);
    // All tokens from `first` on give or not; the first of them is judged by the rows before any value has changed.
    const startRatio = (first - 0.5) / TOKENS;
    const victim = Math.ceil(startRatio * TOKENS);
    assertEquals(victim, first);
    const most = Math.max(
      ...means.subarray(0, first),
      ...means.subarray(victim, victim + window),
    );
    const options = { budget: TOKENS - 1, window, startRatio };
    const applied = runs(input, "cam", options);
    const row = victim + 1;
    const hits = applied.filter(({ positions, values }) => {
      const at = positions[0]!.indexOf(row);
      const plain = input.v[row * SHAPE.headDim]!;
      return values![0]![at * SHAPE.headDim] !== plain;
    }).length;
    assert(applied.every(({ positions }) => positions[0]!.includes(row)));
    assertShare(hits, means[victim]! / most, `position ${victim}`);
  }
});
