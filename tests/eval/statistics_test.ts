import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import {
  bootstrapMean,
  compareAll,
  detectableEffect,
  holm,
  mean,
  normalCdf,
  normalQuantile,
  pairedDifference,
  requiredExamples,
  standardDeviation,
  standardError,
} from "../../eval/statistics/mod.ts";
import { seededBits } from "../../eval/statistics/_random.ts";

const scores = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), {
  minLength: 2,
  maxLength: 30,
});

function byId(values: readonly number[]): Map<string, number> {
  return new Map(values.map((value, i) => [`e${i}`, value]));
}

/** Scores of 0 and 1 with the share `p` of ones. */
function coins(n: number, p: number, seed: number): number[] {
  const bits = seededBits(seed);
  return Array.from({ length: n }, () => bits() < p * 2 ** 32 ? 1 : 0);
}

Deno.test("mean, deviation and standard error agree with values worked by hand", () => {
  const values = [2, 4, 4, 4, 5, 5, 7, 9];
  assertEquals(mean(values), 5);
  assertAlmostEquals(standardDeviation(values), Math.sqrt(32 / 7), 1e-15);
  assertAlmostEquals(standardError(values), Math.sqrt(32 / 7 / 8), 1e-15);
  assert(Number.isNaN(standardError([1])));
  assertThrows(() => mean([]), RangeError, "0 values");
});

Deno.test("normalCdf and normalQuantile agree with published values", () => {
  assertEquals(normalCdf(0), 0.5);
  assertAlmostEquals(normalCdf(1), 0.8413447460685429, 1e-15);
  assertAlmostEquals(normalCdf(-2), 0.02275013194817921, 1e-15);
  assertAlmostEquals(normalCdf(-5) / 2.866515718791939e-7, 1, 1e-12);
  assertAlmostEquals(normalCdf(-10) / 7.619853024160526e-24, 1, 1e-12);
  assertAlmostEquals(normalQuantile(0.975), 1.959963984540054, 1e-13);
  assertAlmostEquals(normalQuantile(0.8), 0.8416212335729143, 1e-13);
  assertAlmostEquals(normalQuantile(0.005), -2.5758293035489004, 1e-13);
  assertThrows(() => normalQuantile(1), RangeError, "p is 1");
});

Deno.test("seededBits repeats by seed and is uniform", () => {
  const take = (seed: number) => {
    const bits = seededBits(seed);
    return Array.from({ length: 4096 }, bits);
  };
  assertEquals(take(1), take(1));
  assert(take(1)[0] !== take(2)[0]);
  const share = take(3).filter((x) => x < 2 ** 31).length / 4096;
  assertAlmostEquals(share, 0.5, 0.03);
});

Deno.test("bootstrapMean agrees with the normal interval on a large sample", () => {
  const values = coins(400, 0.7, 5);
  const { mean: m, standardError: se, low, high } = bootstrapMean([values]);
  assertAlmostEquals(low, m - 1.96 * se, 0.01);
  assertAlmostEquals(high, m + 1.96 * se, 0.01);
});

Deno.test("bootstrapMean covers the true mean about as often as its level says", () => {
  const trials = 200;
  let covered = 0;
  for (let t = 0; t < trials; t++) {
    const { low, high } = bootstrapMean([coins(60, 0.6, 100 + t)], {
      resamples: 400,
      seed: t,
    });
    if (low <= 0.6 && 0.6 <= high) covered++;
  }
  assert(covered >= 180 && covered <= 199, `covered ${covered} of ${trials}`);
});

Deno.test("bootstrapMean weighs groups alike and draws within them", () => {
  const { mean: m, low, high, n } = bootstrapMean([
    Array<number>(10).fill(1),
    Array<number>(1000).fill(0),
  ]);
  assertEquals([m, low, high, n], [0.5, 0.5, 0.5, 1010]);
});

Deno.test("bootstrapMean stays within the scores, around the mean, and repeats by seed", () => {
  fc.assert(
    fc.property(scores, fc.integer(), (values, seed) => {
      const options = { seed, resamples: 200 };
      const { mean: m, low, high } = bootstrapMean([values], options);
      const slack = 1e-12;
      assert(low <= high);
      assert(low >= Math.min(...values) - slack);
      assert(high <= Math.max(...values) + slack);
      assert(
        m >= Math.min(...values) - slack && m <= Math.max(...values) + slack,
      );
      assertEquals(bootstrapMean([values], options), {
        ...bootstrapMean([values], options),
      });
    }),
    { numRuns: 100, seed: 1 },
  );
});

Deno.test("bootstrapMean refuses empty groups and options out of range", () => {
  assertThrows(() => bootstrapMean([]), RangeError);
  assertThrows(() => bootstrapMean([[1], []]), RangeError, "0 values");
  assertThrows(
    () => bootstrapMean([[1]], { level: 1 }),
    RangeError,
    "level is 1",
  );
  assertThrows(
    () => bootstrapMean([[1]], { resamples: 0 }),
    RangeError,
    "is 0",
  );
  assertThrows(() => bootstrapMean([[1]], { seed: 0.5 }), RangeError, "is 0.5");
});

Deno.test("pairedDifference gives the exact p-value of a few differences", () => {
  // Five differences of one sign: two of 32 assignments of signs are as extreme.
  const few = pairedDifference(
    byId([1, 1, 1, 1, 1, 0]),
    byId([0, 0, 0, 0, 0, 0]),
  );
  assertEquals(few.pValue, 2 / 32);
  assertAlmostEquals(few.mean, 5 / 6, 1e-15);
  // 8 for and 2 against is the sign test with 10 coins: 2 (1 + 10 + 45) / 1024.
  const a = byId([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
  const b = byId([0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
  assertEquals(pairedDifference(a, b).pValue, 112 / 1024);
});

Deno.test("pairedDifference approaches the exact p-value when signs are drawn", () => {
  // 21 for and 9 against: binomial with 30 coins, two-sided.
  const a = [...Array<number>(21).fill(1), ...Array<number>(9).fill(0)];
  const b = a.map((x) => 1 - x);
  const { pValue } = pairedDifference(byId(a), byId(b), { resamples: 20000 });
  assertAlmostEquals(pValue, 0.04277394525706768, 0.006);
});

Deno.test("pairedDifference reaches p-values far below one over the draws", () => {
  const a = byId(Array<number>(60).fill(1));
  const b = byId(Array<number>(60).fill(0));
  const { pValue } = pairedDifference(a, b, { resamples: 100 });
  assert(pValue < 1e-13 && pValue > 2 ** -59, String(pValue));
});

Deno.test("pairedDifference gains from pairing", () => {
  const base = coins(200, 0.5, 9);
  const better = base.map((x, i) => i % 10 === 0 ? 1 : x);
  const paired = pairedDifference(byId(better), byId(base));
  const alone = bootstrapMean([better]);
  assert(paired.high - paired.low < (alone.high - alone.low) / 1.5);
  assert(paired.low > 0);
});

Deno.test("pairedDifference changes sign with its sides and is certain of equal scores", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(4), fc.nat(4)), { minLength: 2, maxLength: 25 }),
      (pairs) => {
        const a = byId(pairs.map(([x]) => x / 4));
        const b = byId(pairs.map(([, y]) => y / 4));
        const options = { resamples: 300 };
        const ab = pairedDifference(a, b, options);
        const ba = pairedDifference(b, a, options);
        assertAlmostEquals(ab.mean, -ba.mean, 1e-12);
        assertAlmostEquals(ab.low, -ba.high, 1e-12);
        assertAlmostEquals(ab.pValue, ba.pValue, 1e-12);
        assert(ab.pValue > 0 && ab.pValue <= 1);
        const same = pairedDifference(a, a, options);
        assertEquals([same.low, same.high, same.pValue], [0, 0, 1]);
      },
    ),
    { numRuns: 60, seed: 1 },
  );
});

Deno.test("pairedDifference does not depend on the order of examples", () => {
  const a = coins(50, 0.6, 1);
  const b = coins(50, 0.4, 2);
  const turned = (map: Map<string, number>) => new Map([...map].reverse());
  assertEquals(
    pairedDifference(turned(byId(a)), byId(b)),
    pairedDifference(byId(a), turned(byId(b))),
  );
});

Deno.test("pairedDifference finds chance differences about as rarely as its level says", () => {
  let found = 0;
  for (let t = 0; t < 200; t++) {
    const { pValue } = pairedDifference(
      byId(coins(40, 0.5, 2 * t)),
      byId(coins(40, 0.5, 2 * t + 1)),
      { resamples: 300 },
    );
    if (pValue < 0.05) found++;
  }
  assert(found <= 18, `found ${found} of 200`);
});

Deno.test("pairedDifference refuses a missing score and names its example", () => {
  assertThrows(
    () => pairedDifference(byId([1, 0]), byId([1])),
    RangeError,
    '"e1" is on one side only (2 and 1 examples)',
  );
  assertThrows(() => pairedDifference(new Map(), new Map()), RangeError);
});

Deno.test("holm agrees with values worked by hand", () => {
  assertEquals(
    holm([0.01, 0.04, 0.03, 0.005]).map((p) => Math.round(p * 1e6) / 1e6),
    [0.03, 0.06, 0.06, 0.02],
  );
  assertEquals(holm([]), []);
  assertEquals(holm([0.9, 0.8]), [1, 1]);
});

Deno.test("holm never lowers a p-value, keeps their order and stays below Bonferroni", () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 12 }),
      (pValues) => {
        const adjusted = holm(pValues);
        for (const [i, p] of pValues.entries()) {
          const q = adjusted[i] ?? NaN;
          assert(q >= p && q <= Math.min(1, p * pValues.length) + 1e-15);
          for (const [j, other] of pValues.entries()) {
            if (p < other) assert(q <= (adjusted[j] ?? NaN));
          }
        }
      },
    ),
    { seed: 1 },
  );
});

Deno.test("compareAll marks noise after correcting for the number of pairs", () => {
  const full = coins(100, 0.9, 1);
  const configurations = new Map([
    ["fullkv", byId(full)],
    ["close", byId(full.map((x, i) => i < 2 ? 1 - x : x))],
    ["bad", byId(full.map((x, i) => i % 2 ? 0 : x))],
  ]);
  const versus = compareAll(configurations, { reference: "fullkv" });
  assertEquals(versus.map(({ name, noise }) => [name, noise]), [
    ["close", true],
    ["bad", false],
  ]);
  const pairs = compareAll(configurations);
  assertEquals(pairs.map(({ name, against }) => `${name}-${against}`), [
    "fullkv-close",
    "fullkv-bad",
    "close-bad",
  ]);
  for (const pair of pairs) assert(pair.pHolm >= pair.pValue);
  assertThrows(
    () => compareAll(configurations, { reference: "x" }),
    RangeError,
    "fullkv, close, bad",
  );
});

Deno.test("requiredExamples agrees with the textbook and grows with the comparisons", () => {
  // ((1.95996 + 0.84162) * 0.4 / 0.05)^2 = 502.3
  assertEquals(requiredExamples(0.05, { deviation: 0.4 }), 503);
  assert(
    requiredExamples(0.05, { deviation: 0.4, comparisons: 20 }) > 503,
  );
  assertAlmostEquals(detectableEffect(503, { deviation: 0.4 }), 0.05, 1e-4);
  assertThrows(
    () => requiredExamples(0, { deviation: 0.4 }),
    RangeError,
    "minEffect is 0",
  );
});
