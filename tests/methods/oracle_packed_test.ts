/** Packed rows against an independent reading of the formats, on random shapes. */
import fc from "fast-check";
import { assert, assertEquals } from "@std/assert";
import { applyMethod } from "../../eval/apply.ts";
import type { Device } from "../../ffi/mod.ts";
import { type Granularity, resolveMethod } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";
import { noise } from "./oracle/cases.ts";
import { upTo } from "./oracle/choice.ts";
import {
  distinct,
  type Grouping,
  PAGE,
  turned,
  wrongCodes,
} from "./oracle/quantise.ts";

interface Case {
  bits: number;
  residual: number;
  tokens: number;
  kvHeads: number;
  groupSize: number;
  headDim: number;
  granularity: Granularity;
  /** Size of the numbers, and what is added to the keys. */
  scale: number;
  offset: number;
  seed: number;
}

const integer = (max: number, min = 0) => fc.integer({ min, max });

const CASE = fc.record({
  bits: fc.constantFrom(2, 3, 4, 8),
  residual: fc.oneof(fc.constantFrom(0, 31, 32, 33), integer(140)),
  tokens: fc.oneof(integer(70, 1), integer(300, 1)),
  kvHeads: integer(3, 1),
  groupSize: fc.constantFrom(1, 2, 3, 5),
  headDim: fc.constantFrom(32, 64, 80, 96, 128),
  granularity: fc.constantFrom<Granularity>("kv_head", "query_head"),
  scale: fc.constantFrom(0.01, 1, 1, 30),
  offset: fc.constantFrom(0, 0, 50, -50),
  seed: integer(2 ** 31 - 1, 1),
});

const inverseFrequencies = (headDim: number) =>
  Float32Array.from(
    { length: headDim / 2 },
    (_, i) => 10000 ** (-2 * i / headDim),
  );

/** Keys and values of each head before and after a method, with how many rows are packed. */
function packed(
  one: Case,
  method: string,
  options: Record<string, unknown>,
  device: Device,
) {
  const { kvHeads, groupSize, headDim, tokens, scale, seed } = one;
  const size = kvHeads * tokens * headDim;
  const k = noise(size, seed, scale).map((x) => x + one.offset * scale);
  const v = noise(size, seed + 1, scale);
  const applied = applyMethod({
    q: noise(size * groupSize, seed + 2, 1),
    k,
    v,
    method: resolveMethod(method),
    options,
    shape: { queryHeads: kvHeads * groupSize, kvHeads, headDim },
    granularity: one.granularity,
    device,
    inverseFrequencies: inverseFrequencies(headDim),
    rows: true,
  });
  const perSource = one.granularity === "kv_head" ? 1 : groupSize;
  const packedRows = options.compat === "reference"
    ? tokens
    : Math.max(0, Math.floor((tokens - one.residual) / PAGE)) * PAGE;
  return applied.keys!.map((keys, head) => {
    assertEquals(applied.positions[head], upTo(tokens));
    const at = Math.floor(head / perSource) * tokens * headDim;
    const own = (all: Float32Array) => all.subarray(at, at + tokens * headDim);
    return {
      keys: { before: own(k), after: keys },
      values: { before: own(v), after: applied.values![head]! },
      packedRows,
    };
  });
}

/** The pages that are packed, and throws where rows that are not differ. */
function* pagesOf(
  { before, after }: { before: Float32Array; after: Float32Array },
  packedRows: number,
  headDim: number,
): Generator<{ x: Float32Array; y: Float32Array; first: number }> {
  assertEquals(after.length, before.length);
  const end = packedRows * headDim;
  assertEquals(after.slice(end), before.slice(end), "rows of the residual");
  for (let first = 0; first < packedRows; first += PAGE) {
    const last = Math.min(first + PAGE, packedRows);
    const at = [first * headDim, last * headDim] as const;
    yield { x: before.subarray(...at), y: after.subarray(...at), first };
  }
}

/** Runs a property over random cases. */
function always(check: (one: Case, device: Device) => void): void {
  using device = openDevice();
  fc.assert(fc.property(CASE, (one) => check(one, device)), {
    numRuns: 40,
    seed: 11,
  });
}

Deno.test("kivi's codes are the nearest of evenly spaced ones, keys per channel, values per token", () => {
  const [keys, values]: Omit<Grouping, "bits">[] = [
    { axis: "channel", group: 0 },
    { axis: "token", group: 32 },
  ];
  always((one, device) => {
    const { bits, residual, headDim } = one;
    for (const head of packed(one, "kivi", { bits, residual }, device)) {
      for (const [what, how] of [["keys", keys], ["values", values]] as const) {
        for (const { x, y } of pagesOf(head[what], head.packedRows, headDim)) {
          const fault = wrongCodes(x, y, headDim, { bits, ...how! });
          assert(fault === undefined, `${what}: ${fault}`);
        }
      }
    }
  });
});

Deno.test("compat reference of kivi and kvquant groups 64 channels of a key", () => {
  always((one, device) => {
    const { bits, headDim } = one;
    const compat = "reference";
    for (
      const [name, options] of [
        ["kivi", { bits, compat }],
        ["kvquant", { bits, compat, outliers: 0 }],
      ] as const
    ) {
      for (const head of packed(one, name, options, device)) {
        for (const { x, y } of pagesOf(head.keys, head.packedRows, headDim)) {
          const how: Grouping = { bits, axis: "token", group: 64 };
          const fault = wrongCodes(x, y, headDim, how);
          assert(fault === undefined, fault);
        }
      }
    }
  });
});

Deno.test("kvquant gives a channel of a page as many key levels before rotation as the bits allow, within its range", () => {
  always((one, device) => {
    const { residual, headDim, offset, scale } = one;
    const bits = Math.min(one.bits, 4);
    const options = { bits, residual, outliers: 0 };
    const size = scale * (6 + Math.abs(offset));
    for (const head of packed(one, "kvquant", options, device)) {
      for (
        const { x, y, first } of pagesOf(head.keys, head.packedRows, headDim)
      ) {
        const [plain, back] = [x, y].map((rows) =>
          turned(rows, headDim, inverseFrequencies(headDim), first, -1)
        );
        for (let d = 0; d < headDim; d++) {
          const own = (rows: Float64Array) =>
            upTo(PAGE).map((row) => rows[row * headDim + d]!);
          const levels = own(back!);
          assert(distinct(levels, 1e-4 * size) <= 2 ** bits, `${levels}`);
          const room = 2e-3 * size;
          assert(Math.min(...levels) >= Math.min(...own(plain!)) - room);
          assert(Math.max(...levels) <= Math.max(...own(plain!)) + room);
        }
      }
    }
  });
});

/** Squared differences of all heads. */
const loss = (
  heads: ReturnType<typeof packed>,
  what: "keys" | "values",
): number =>
  heads.reduce((sum, head) => {
    const { before, after } = head[what];
    return sum + before.reduce((s, x, i) => s + (x - after[i]!) ** 2, 0);
  }, 0);

Deno.test("gear without its parts is kivi, and each part loses less", () => {
  always((one, device) => {
    const { bits, residual } = one;
    const run = (method: string, options: Record<string, unknown>) =>
      packed(one, method, { bits, residual, ...options }, device);
    const kivi = run("kivi", {});
    const plain = run("gear", { rank: 0, outliers: 0 });
    const ranked = run("gear", { rank: 4, outliers: 0 });
    const exact = run("gear", { rank: 0, outliers: 0.05 });
    assertEquals(plain.map(({ keys }) => keys), kivi.map(({ keys }) => keys));
    assertEquals(
      plain.map(({ values }) => values),
      kivi.map(({ values }) => values),
    );
    if (kivi[0]!.packedRows === 0) return;
    for (const what of ["keys", "values"] as const) {
      const most = loss(plain, what);
      assert(loss(ranked, what) < most, `rank of ${what}`);
      assert(loss(exact, what) < most, `outliers of ${what}`);
    }
  });
});

Deno.test("gear loses less with every rank, and next to nothing with all", () => {
  using device = openDevice();
  const one: Case = {
    bits: 2,
    residual: 0,
    tokens: 96,
    kvHeads: 2,
    groupSize: 2,
    headDim: 32,
    granularity: "kv_head",
    scale: 1,
    offset: 0,
    seed: 5,
  };
  for (const what of ["keys", "values"] as const) {
    const losses = [0, 1, 4, 16, 32].map((rank) => {
      const options = { bits: 2, residual: 0, rank, outliers: 0 };
      return loss(packed(one, "gear", options, device), what);
    });
    losses.forEach((x, i) =>
      assert(i === 0 || x < losses[i - 1]!, `${losses}`)
    );
    assert(losses.at(-1)! < 0.001 * losses[0]!, `${losses}`);
  }
});
