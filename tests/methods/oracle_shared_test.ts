/** MiniCache against an independent reading of its definition, on random shapes. */
import fc from "fast-check";
import { assert, assertEquals } from "@std/assert";
import { applyMethod } from "../../eval/apply.ts";
import { type Granularity, resolveMethod } from "../../methods/mod.ts";
import { openDevice } from "../ffi/tiny.ts";
import { noise } from "./oracle/cases.ts";
import { upTo } from "./oracle/choice.ts";
import { shared } from "./oracle/merge.ts";

const CASE = fc.record({
  tokens: fc.oneof(
    fc.integer({ min: 1, max: 40 }),
    fc.integer({ min: 1, max: 200 }),
  ),
  kvHeads: fc.integer({ min: 1, max: 4 }),
  groupSize: fc.constantFrom(1, 2, 3, 5),
  headDim: fc.constantFrom(32, 64, 80, 96, 128),
  granularity: fc.constantFrom<Granularity>("kv_head", "query_head"),
  interpolation: fc.constantFrom(0, 0.25, 0.6, 1),
  keepRatio: fc.constantFrom(0, 0.05, 0.3, 0.7, 1),
  /** How many rows are the same in both layers, or zero in one. */
  same: fc.constantFrom(0, 0, 3),
  zero: fc.constantFrom(0, 0, 2),
  scale: fc.constantFrom(0.1, 1, 20),
  seed: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
});

Deno.test("minicache does with random shapes and options what the oracle does", () => {
  using device = openDevice();
  fc.assert(
    fc.property(CASE, (one) => {
      const { tokens, kvHeads, groupSize, headDim, granularity, scale } = one;
      const size = kvHeads * tokens * headDim;
      const [current, previous] = [0, 1].map((layer) =>
        ["k", "v"].map((_, i) => noise(size, one.seed + 2 * layer + i, scale))
      ) as [[Float32Array, Float32Array], [Float32Array, Float32Array]];
      for (const i of [0, 1]) {
        const own = upTo(one.same * headDim).filter((at) => at < size);
        for (const at of own) current[i]![at] = previous[i]![at]!;
        previous[i]!.fill(0, size - Math.min(size, one.zero * headDim));
      }
      const { interpolation, keepRatio } = one;
      const applied = applyMethod({
        q: noise(size * groupSize, 1, 1),
        k: current[0],
        v: current[1],
        lower: { k: previous[0], v: previous[1] },
        shape: { queryHeads: kvHeads * groupSize, kvHeads, headDim },
        method: resolveMethod("minicache"),
        options: { interpolation, keepRatio, firstShare: 0 },
        granularity,
        layer: 1,
        device,
        rows: true,
      });
      const perSource = granularity === "kv_head" ? 1 : groupSize;
      applied.positions.forEach((positions, head) => {
        assertEquals(positions, upTo(tokens));
        const source = Math.floor(head / perSource);
        const rowsOf = (all: Float32Array, first = source) =>
          upTo(tokens).map((p) => {
            const at = (first * tokens + p) * headDim;
            return all.subarray(at, at + headDim);
          });
        const sides = [applied, applied.lower!];
        for (const [i, what] of (["keys", "values"] as const).entries()) {
          const originals = [current, previous].map((side) => rowsOf(side[i]!));
          const [upper, lower] = originals as [Float32Array[], Float32Array[]];
          const { distance, exact, ...expected } = shared(
            upper,
            lower,
            interpolation,
            keepRatio,
          );
          const held = sides.map((side) => rowsOf(side[what]![head]!, 0));
          const isExact = upTo(tokens).filter((p) =>
            [0, 1].every((side) =>
              held[side]![p]!.every((x, d) => x === originals[side]![p]![d])
            )
          );
          const cut = exact === 0 ? Infinity : distance.toSorted().at(-exact)!;
          upTo(tokens).forEach((p) => {
            // Angles near 0 lose half their digits in single precision.
            if (exact > 0 && distance[p]! > cut + 1e-4) {
              assert(isExact.includes(p), `${what} of row ${p} must be exact`);
            }
            if (isExact.includes(p) && distance[p]! >= cut - 1e-4) return;
            [expected.current, expected.previous].forEach((rows, side) => {
              const size = Math.hypot(...originals[side]![p]!);
              rows[p]!.forEach((x, d) => {
                const y = held[side]![p]![d]!;
                assert(
                  Math.abs(x - y) <= 2e-5 * (size + 1e-6),
                  `${what} of row ${p}, channel ${d}: ${y}, not ${x}`,
                );
              });
            });
          });
          const close = upTo(tokens)
            .filter((p) => Math.abs(distance[p]! - cut) <= 1e-4).length;
          if (
            interpolation > 0 && interpolation < 1 && one.same === 0 &&
            one.zero === 0
          ) {
            assert(Math.abs(isExact.length - exact) < close + 1);
          }
        }
      });
    }),
    { numRuns: 60, seed: 3 },
  );
});
