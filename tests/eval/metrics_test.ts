import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  cleanRulerPrediction,
  contains,
  createMetric,
  cutChinese,
  firstCodeLine,
  firstLine,
  isMetricName,
  LONGBENCH_SCORING,
  longbenchAverages,
  longbenchBins,
  longbenchMetric,
  longbenchScore,
  METRIC_DEFINITIONS,
  METRICS,
  roundNumpy2,
  roundPython2,
  rulerScore,
  rulerSummary,
  stringMatchAll,
  stringMatchPart,
} from "../../eval/metrics/mod.ts";

Deno.test("contains finds the answer as whole words, letter case, punctuation and articles aside", () => {
  assertEquals(contains("The code is 4821.", ["4821"]), 1);
  assertEquals(contains("The code is 94821.", ["4821"]), 0);
  assertEquals(contains("the code is 48217", ["4821"]), 0);
  assertEquals(contains("Sit in a PARK, and eat!", ["eat"]), 1);
  assertEquals(contains("sit in the park", ["sit in a park"]), 1);
  assertEquals(contains("no", ["yes", "no"]), 1);
  assertEquals(contains("", ["x"]), 0);
  assertEquals(contains("anything", ["the"]), 0);
});

Deno.test("contains ignores word borders in scripts without spaces", () => {
  assertEquals(contains("答案是厦门大学。", ["厦门"]), 1);
  assertEquals(contains("答案是42号", ["42"]), 1);
});

Deno.test("firstLine drops leading newlines only and keeps other white space", () => {
  assertEquals(firstLine("\n\n a \nb"), " a ");
  assertEquals(firstLine("\r\na"), "\r");
  assertEquals(firstLine(""), "");
});

Deno.test("firstCodeLine skips lines with comments and fences", () => {
  assertEquals(firstCodeLine("\n\n# note\n```py\n  x = 1 \ny"), "  x = 1 ");
  assertEquals(firstCodeLine("// a\n# b"), "");
  assertEquals(firstCodeLine("a // b\n\nc"), "");
});

Deno.test("RULER's cleaning trims and turns control characters into newlines", () => {
  assertEquals(cleanRulerPrediction(" \u0001a\tb\u0000 "), "a\nb");
});

Deno.test("string_match_all scores a share and string_match_part any", () => {
  assertEquals(stringMatchAll("Alpha beta", ["ALPHA", "gamma"]), 0.5);
  assertEquals(stringMatchPart("Alpha beta", ["ALPHA", "gamma"]), 1);
  assertEquals(stringMatchPart("Alpha beta", ["gamma"]), 0);
});

Deno.test("METRICS scores between 0 and 1 whatever the texts are", () => {
  const names = Object.keys(METRIC_DEFINITIONS).filter((name) =>
    !["classification", "retrieval", "retrieval_zh"].includes(name)
  );
  const text = fc.string({ unit: "grapheme", maxLength: 40 });
  fc.assert(
    fc.property(
      fc.constantFrom(...names.filter(isMetricName)),
      text,
      fc.array(text, { minLength: 1, maxLength: 3 }),
      (name, prediction, answers) => {
        const score = METRICS[name](prediction, answers);
        return score >= 0 && score <= 1;
      },
    ),
    { numRuns: 500, seed: 1 },
  );
});

Deno.test("cutChinese returns tokens that join to the text", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary", maxLength: 30 }),
      (text) => cutChinese(text).join("") === text,
    ),
    { numRuns: 300, seed: 1 },
  );
});

Deno.test("createMetric records its options with their defaults", () => {
  assertEquals(createMetric("code_sim").variant, {
    firstLine: false,
    similarity: "indel",
  });
  assertEquals(createMetric("rouge", { depth: "python" }).variant, {
    firstLine: false,
    depth: "python",
  });
});

Deno.test("createMetric refuses unknown names and options and lists the right ones", () => {
  assertThrows(() => createMetric("bleu"), RangeError, "needle_rouge1");
  assertThrows(
    () => createMetric("code_sim", { variant: "x" }),
    TypeError,
    "firstLine, similarity",
  );
  assertThrows(
    () => createMetric("rouge", { depth: "deep" }),
    TypeError,
    '"unlimited"|"python"',
  );
  assertThrows(() => METRICS.classification("a", ["a"]), TypeError, "labels");
});

Deno.test("retrieval refuses an answer that names no paragraph", () => {
  assertThrows(
    () => METRICS.retrieval("Paragraph 3", ["3"]),
    SyntaxError,
    'answer is "3"',
  );
});

Deno.test("longbenchMetric takes from shared options what the data set needs", () => {
  const options = {
    similarity: "difflib",
    labels: ["a", "b"],
    depth: "python",
  };
  assertEquals(longbenchMetric("trec", options).variant, {
    firstLine: true,
    labels: ["a", "b"],
  });
  assertEquals(longbenchMetric("lcc_e", options).name, "code_sim");
  assertThrows(() => longbenchMetric("squad"), RangeError, '"squad"');
  assertEquals(LONGBENCH_SCORING.size, 21);
});

Deno.test("longbenchMetric applies the first line rule to the four few-shot sets", () => {
  const wordy = "\nParis\nLondon";
  assertEquals(longbenchMetric("triviaqa").score(wordy, ["Paris"]), 1);
  assertAlmostEquals(
    longbenchMetric("hotpotqa").score(wordy, ["Paris"]),
    2 / 3,
  );
});

Deno.test("averages over data sets and over categories differ and are both given", () => {
  const scores = new Map([["qasper", 10], ["narrativeqa", 20], ["lcc", 60]]);
  assertEquals(longbenchAverages(scores), {
    overDatasets: 30,
    overCategories: 37.5,
  });
  assertThrows(() => longbenchAverages(new Map([["x", 1]])), RangeError, '"x"');
});

Deno.test("data set scores refuse empty sets and bins without records are null", () => {
  assertThrows(() => longbenchScore([]), RangeError, "0 records");
  assertThrows(() => rulerScore([]), RangeError, "0 records");
  assertEquals(longbenchBins([{ score: 0.5, length: 4000 }]), {
    "0-4k": null,
    "4-8k": 50,
    "8k+": null,
  });
});

Deno.test("rulerSummary weighs lengths and names the effective one", () => {
  const summary = rulerSummary(
    new Map([[8192, [80, 90]], [4096, [100, 90]], [16384, [50]]]),
  );
  assertEquals(summary.byLength.map(({ mean }) => mean), [95, 85, 50]);
  assertAlmostEquals(summary.mean, 230 / 3);
  assertAlmostEquals(summary.meanIncreasing, (95 + 170 + 150) / 6);
  assertAlmostEquals(summary.meanDecreasing, (285 + 170 + 50) / 6);
  assertEquals(summary.effectiveLength, 4096);
  assertEquals(rulerSummary(new Map([[4096, [1]]])).effectiveLength, null);
});

Deno.test("rounding follows Python on ties and on decimal values just off them", () => {
  assertEquals([0.125, 0.375, 2.675, 2.5, -0.125].map(roundPython2), [
    0.12,
    0.38,
    2.67,
    2.5,
    -0.12,
  ]);
  assertEquals(roundNumpy2(2.675), 2.68);
});
