/** Methods against an independent reading of their definitions, first proven on the recorded cases of the reference. */
import fc from "fast-check";
import { assert, assertEquals } from "@std/assert";
import { cases, header, storedRows } from "./goldens.ts";
import { keptBy, ranked, upTo, wrong } from "./oracle/choice.ts";
import type { Task } from "./oracle/evict.ts";
import { openDevice } from "../ffi/tiny.ts";
import { pyramidRows, scoreTable } from "./oracle/budgets.ts";
import {
  type Case,
  casesOf,
  ORACLE_METHODS,
  runCase,
  tensorsOf,
} from "./oracle/cases.ts";
import { applyMethod } from "../../eval/apply.ts";
import type { Device } from "../../ffi/mod.ts";
import { resolveMethod } from "../../methods/mod.ts";
import { headBudgets, parseHeadFile } from "../../methods/parts/head_table.ts";
import { pyramidBudgets } from "../../methods/parts/pyramid.ts";
import { taskOf } from "./oracle/golden.ts";
import { sourceOf } from "./oracle/layer.ts";
import { choicesOf } from "./oracle/expect.ts";
import {
  cam,
  type CamOptions,
  channelScores,
  earlyRows,
  merged,
  shared,
  type ThinkOptions,
} from "./oracle/merge.ts";
import { readTensor } from "../../models/mod.ts";

Deno.test("the oracle keeps what the reference keeps, in every recorded case", () => {
  let count = 0;
  for (const golden of cases) {
    if (golden.method === "minicache" || golden.indices === undefined) continue;
    const choices = choicesOf(golden.method, taskOf(golden));
    golden.indices.forEach((positions, head) => {
      const faults = choices[head]!.map((choice) =>
        wrong(positions, choice, false)
      );
      assert(
        faults.includes(undefined),
        `${golden.case}, head ${head}: ${faults}`,
      );
    });
    assertEquals(choices.length, golden.indices.length);
    count++;
  }
  assertEquals(count, 269);
});

const near = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).every((x, i) =>
    Math.abs(x - b[i]!) <= 1e-5 * (1 + Math.abs(x))
  );

/** Both lists hold near rows, in any order. */
function assertSameRows(
  name: string,
  actual: ArrayLike<number>[],
  expected: ArrayLike<number>[],
): void {
  const left = [...expected];
  for (const row of actual) {
    const at = left.findIndex((other) => near(row, other));
    assert(at >= 0, `${name}: a row of the oracle's is not the reference's`);
    left.splice(at, 1);
  }
  assertEquals(left.length, 0, name);
}

Deno.test("the oracle merges as the reference merges, in every recorded case", () => {
  const own = cases.filter(({ options, stored }) => options.merge && stored);
  assertEquals(own.length, 16);
  for (const golden of own) {
    const task = taskOf(golden);
    const [k, v] = [storedRows(golden.case, "k"), storedRows(golden.case, "v")];
    choicesOf(golden.method, task).forEach(([choice], head) => {
      const { keys, values } = merged(
        task.input,
        sourceOf(task.input, task.storedHeads, head),
        keptBy(choice!),
        golden.options.merge as "pivot" | "weighted",
      );
      const joined = (a: ArrayLike<number>[], b: ArrayLike<number>[]) =>
        a.map((row, i) => [...Array.from(row), ...Array.from(b[i]!)]);
      assertSameRows(
        `${golden.case}, head ${head}`,
        joined(keys, values),
        joined(k[head]!, v[head]!),
      );
    });
  }
});

Deno.test("the oracle hands values on as the reference's CAM does", () => {
  const own = cases.filter(({ method }) => method === "cam");
  assertEquals(own.length, 4);
  for (const golden of own) {
    const { values, uncertain } = cam(taskOf(golden) as Task<CamOptions>);
    assert(!uncertain.includes(true));
    const stored = storedRows(golden.case, "v");
    golden.indices!.forEach((positions, head) =>
      positions.forEach((p, i) =>
        assert(near(values[head]![p]!, stored[head]![i]!), golden.case)
      )
    );
  }
});

Deno.test("the oracle prunes the channels and rows that the reference's ThinK prunes", () => {
  const own = cases.filter(({ method }) => method === "think");
  assertEquals(own.length, 4);
  for (const golden of own) {
    const task = taskOf(golden) as Task<ThinkOptions>;
    const { headDim, k } = task.input;
    const mask = readTensor(header, `${golden.case}.channel_mask`).data;
    const pruned = storedRows(golden.case, "k_pruned");
    choicesOf("think", task).forEach(([choice], head) => {
      const scores = channelScores(task, head, keptBy(choice!));
      const kept = upTo(headDim).filter((d) => mask[head * headDim + d] !== 0);
      const best = ranked(upTo(headDim), scores).slice(0, kept.length);
      assertEquals(best.sort((a, b) => a - b), kept);
      const { tokens } = task.input;
      const source = sourceOf(task.input, task.storedHeads, head);
      const early = pruned[head]!.map((row) =>
        upTo(tokens).find((p) =>
          kept.every((d, i) =>
            k[(source * tokens + p) * headDim + d] === row[i]
          )
        )!
      );
      const first = earlyRows(choice!, early.length);
      assertEquals(wrong(early, first, false), undefined, golden.case);
    });
  }
});

Deno.test("the oracle shares directions as the reference's MiniCache does", () => {
  const own = cases.filter(({ method }) => method === "minicache");
  assertEquals(own.length, 2);
  const [previous, current] = ["previous", "current"]
    .map((name) => storedRows("minicache", name));
  for (const golden of own) {
    const { interpolation, retention_ratio: ratio } = golden.options;
    current!.forEach((rows, head) => {
      const { distance, exact, ...both } = shared(
        rows,
        previous![head]!,
        interpolation!,
        ratio!,
      );
      const kept = ranked(upTo(rows.length), distance).slice(0, exact);
      assertEquals(kept.sort((a, b) => a - b), golden.indices![head]);
      const direction = storedRows(golden.case, "direction")[head]!;
      for (const side of ["current", "previous"] as const) {
        const lengths = storedRows(golden.case, `mag_${side}`)[head]!;
        both[side].forEach((row, i) =>
          assert(near(row, direction[i]!.map((x) => x * lengths[i]![0]!)))
        );
      }
    });
  }
});

for (const method of ORACLE_METHODS) {
  Deno.test(`${method} does with random shapes and options what the oracle does`, () => {
    using device = openDevice();
    const tally = { compared: 0, open: 0 };
    fc.assert(
      fc.property(casesOf(method, 2e6), (one) => runCase(one, device, tally)),
      { numRuns: 80, seed: 20 },
    );
    assert(tally.compared > 8 * tally.open, JSON.stringify(tally));
  });
}

/** Positions that a method keeps of a random case's tensors. */
function kept(
  one: Case,
  device: Device,
  method: string,
  options: Record<string, unknown>,
): number[][] {
  return applyMethod({
    ...tensorsOf(one),
    shape: {
      queryHeads: one.kvHeads * one.groupSize,
      kvHeads: one.kvHeads,
      headDim: one.headDim,
    },
    method: resolveMethod(method),
    options,
    granularity: one.granularity,
    layer: one.layer,
    layers: one.layers,
    device,
  }).positions;
}

Deno.test("budget policies on snapkv's votes are the methods that are named after them", () => {
  using device = openDevice();
  fc.assert(
    fc.property(
      casesOf("snapkv", 1e6),
      fc.constantFrom(0, 0.2, 1),
      fc.integer({ min: 1, max: 40 }),
      (one, floor, beta) => {
        // Averages of equal sums differ in their last bits between sums and means of votes.
        const { merge: _, ...given } = one.options;
        const votes = { ...given, pool: "max" };
        const snapkv = (budgetPolicy: string) =>
          kept(one, device, "snapkv", { ...votes, budgetPolicy });
        assertEquals(
          snapkv(`adaptive:${floor}`),
          kept(one, device, "adakv", { ...votes, floor }),
        );
        assertEquals(
          snapkv(`pyramid:${beta}`),
          kept(one, device, "pyramidkv", { ...votes, beta, compat: "paper" }),
        );
      },
    ),
    { numRuns: 60, seed: 21 },
  );
});

Deno.test("the paper's pyramid deals out the budget of all layers, from the first down to the last", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 600 }),
      fc.integer({ min: 1, max: 64 }),
      fc.integer({ min: 1, max: 80 }),
      fc.integer({ min: 1, max: 50 }),
      fc.integer({ min: 0, max: 3000 }),
      (base, window, layers, beta, more) => {
        const tokens = base + window + more;
        const shape = { base, candidates: tokens - window, layers, beta };
        const rows = (exact: boolean) =>
          pyramidBudgets({ ...shape, exact }, tokens);
        assertEquals(
          rows(false),
          upTo(layers).map((layer) =>
            pyramidRows({
              tokens,
              budget: base + window,
              window,
              beta,
              layer,
              layers,
            })
          ),
        );
        const paper = rows(true);
        assertEquals(paper.reduce((a, b) => a + b), layers * base);
        paper.forEach((n, i) => {
          assert(n >= 0 && n <= tokens - window);
          assert(i === 0 || n <= paper[i - 1]!, `${paper}`);
        });
      },
    ),
    { numRuns: 1000, seed: 22 },
  );
});

Deno.test("a file of head scores deals out the rows that the oracle deals out", () => {
  const list = fc.array(fc.double({ min: 0, max: 100, noNaN: true }), {
    minLength: 1,
    maxLength: 5,
  });
  fc.assert(
    fc.property(
      fc.array(list, { minLength: 1, maxLength: 64 }),
      fc.integer({ min: 1, max: 4096 }),
      fc.constantFrom(1, 1.01, 1.1, 1.5, 2, 3, 7),
      (lists, budget, beta) => {
        fc.pre(lists.flat().some((x) => x > 1e-3));
        const file = Object.fromEntries(lists.map((one, i) => [`0-${i}`, one]));
        const { values } = parseHeadFile("scores", JSON.stringify(file));
        assertEquals(
          headBudgets(values, budget, beta),
          scoreTable(lists, budget, beta),
        );
      },
    ),
    { numRuns: 500, seed: 23 },
  );
});
