import { assertAlmostEquals, assertEquals } from "@std/assert";
import { ropeFrequencies } from "../../models/mod.ts";

function assertClose(actual: Float32Array, expected: number[]): void {
  assertEquals(actual.length, expected.length);
  expected.forEach((e, i) => assertAlmostEquals(actual[i]!, e, 1e-6 * e));
}

Deno.test("ropeFrequencies() gives powers of the base", () => {
  const { invFreq, scale } = ropeFrequencies(8, {
    type: "default",
    theta: 10_000,
  });
  assertClose(invFreq, [1, 0.1, 0.01, 0.001]);
  assertEquals(scale, 1);
});

Deno.test("ropeFrequencies() divides by the factor of linear scaling", () => {
  const { invFreq, scale } = ropeFrequencies(8, {
    type: "linear",
    theta: 10_000,
    factor: 4,
  });
  assertClose(invFreq, [0.25, 0.025, 0.0025, 0.00025]);
  assertEquals(scale, 1);
});

Deno.test("ropeFrequencies() smooths between short and long wavelengths for llama3", () => {
  const { invFreq, scale } = ropeFrequencies(8, {
    type: "llama3",
    theta: 10_000,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 1000,
  });
  // Wavelengths 6.3, 62.8, 628.3 and 6283 against 250 and 1000: the third is kept by (1000 / 628.3185 - 1) / 3.
  const kept = 0.19718314;
  assertClose(invFreq, [
    1,
    0.1,
    (1 - kept) * 0.01 / 8 + kept * 0.01,
    0.000125,
  ]);
  assertEquals(scale, 1);
});

Deno.test("ropeFrequencies() ramps from kept to stretched pairs for YaRN", () => {
  const yarn = {
    type: "yarn",
    theta: 10_000,
    factor: 4,
    originalMaxPositions: 1000,
    betaFast: 32,
    betaSlow: 1,
    truncate: true,
  } as const;
  // 32 turns fit at pair 0.697, one turn at pair 2.202: the ramp goes from 0 to 3.
  const rounded = ropeFrequencies(8, yarn);
  assertClose(rounded.invFreq, [1, 0.075, 0.005, 0.00025]);
  assertAlmostEquals(rounded.scale, 1.1386294361, 1e-9);
  // Without rounding, pair 1 is (1 - 0.69667) / 1.50515 = 0.20153 along the ramp.
  const exact = ropeFrequencies(8, { ...yarn, truncate: false });
  assertAlmostEquals(exact.invFreq[1]!, 0.1 * (1 - 0.75 * 0.20153), 1e-6);
});

Deno.test("ropeFrequencies() takes YaRN's attention factor, or the ratio of the two magnitudes", () => {
  const yarn = {
    type: "yarn",
    theta: 10_000,
    factor: 40,
    originalMaxPositions: 4096,
    betaFast: 32,
    betaSlow: 1,
    truncate: true,
  } as const;
  assertEquals(
    ropeFrequencies(8, { ...yarn, attentionFactor: 1.5 }).scale,
    1.5,
  );
  assertEquals(
    ropeFrequencies(8, { ...yarn, mscale: 1, mscaleAllDim: 1 }).scale,
    1,
  );
  // (0.1 * 2 * ln 40 + 1) / (0.1 * ln 40 + 1), ln 40 = 3.68887945
  assertAlmostEquals(
    ropeFrequencies(8, { ...yarn, mscale: 2, mscaleAllDim: 1 }).scale,
    1.73777589 / 1.368887945,
    1e-8,
  );
});
