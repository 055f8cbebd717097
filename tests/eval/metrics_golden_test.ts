// deno-lint-ignore-file camelcase -- the names of the golden files
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  createMetric,
  cutChinese,
  longbenchBins,
  longbenchMetric,
  longbenchScore,
  needleRouge1,
  needleWords,
  normalizeChinese,
  normalizeEnglish,
  porterStem,
  roundPython2,
  rulerScore,
} from "../../eval/metrics/mod.ts";
import type { Json } from "../../tasks/types.ts";

/** One line of `metrics.json`; computed with the reference functions under Python 3.11, see the README beside it. */
interface Golden {
  metric: string;
  prediction: string;
  answers: string[];
  expected: number;
  all_classes?: string[];
  expected_levenshtein?: number;
  expected_without_recursion_limit?: number;
}

interface ExtraGolden {
  metric: string;
  text: string;
  word: string;
  needle: string;
  response: string;
  expected_answer: string;
  expected: never;
}

interface DataSetGolden {
  kind: string;
  dataset: string;
  records: {
    pred: string;
    answers: string[];
    length: number;
    all_classes: string[] | null;
  }[];
  expected: number;
  expected_by_length: { [bin: string]: number | null };
  expected_levenshtein?: number;
}

function load<T>(name: string): T[] {
  const url = new URL(`../goldens/metrics/${name}.json`, import.meta.url);
  return JSON.parse(Deno.readTextFileSync(url));
}

const METRIC_GOLDENS = load<Golden>("metrics");
const EXTRA_GOLDENS = load<ExtraGolden>("metrics_extra");
const DATA_SET_GOLDENS = load<DataSetGolden>("dataset_scores");

/** Exact in theory; a last bit may differ where the order of a product is free. */
const TOLERANCE = 1e-12;

function compare(
  name: string,
  golden: string,
  count: number,
  options: (golden: Golden) => { [key: string]: Json },
  expected: (golden: Golden) => number = (g) => g.expected,
): void {
  const goldens = METRIC_GOLDENS.filter(({ metric }) => metric === golden);
  assertEquals(goldens.length, count);
  for (const g of goldens) {
    const score = createMetric(name, options(g)).score(g.prediction, g.answers);
    assertAlmostEquals(
      score,
      expected(g),
      TOLERANCE,
      JSON.stringify({ g, score }),
    );
  }
}

for (
  const [name, golden, count] of [
    ["qa_f1", "qa_f1_score", 111],
    ["qa_f1_zh", "qa_f1_zh_score", 81],
    ["count", "count_score", 69],
    ["retrieval", "retrieval_score", 69],
    ["retrieval_zh", "retrieval_zh_score", 68],
  ] as const
) {
  Deno.test(`${name} agrees with all ${count} goldens`, () => {
    compare(name, golden, count, () => ({}));
  });
}

Deno.test("classification agrees with all 67 goldens", () => {
  compare("classification", "classification_score", 67, (g) => ({
    labels: g.all_classes ?? [],
  }));
});

for (const [name, count] of [["rouge", 111], ["rouge_zh", 84]] as const) {
  Deno.test(`${name} agrees with all ${count} goldens, with and without Python's recursion limit`, () => {
    compare(name, `${name}_score`, count, () => ({ depth: "python" }));
    compare(
      name,
      `${name}_score`,
      count,
      () => ({}),
      (g) => g.expected_without_recursion_limit ?? g.expected,
    );
  });
}

Deno.test("code_sim agrees with all 126 goldens in both variants", () => {
  compare("code_sim", "code_sim_score", 126, () => ({ similarity: "difflib" }));
  compare(
    "code_sim",
    "code_sim_score",
    126,
    () => ({}),
    (g) => g.expected_levenshtein ?? NaN,
  );
});

for (const name of ["string_match_all", "string_match_part"] as const) {
  Deno.test(`${name} agrees with all 67 goldens`, () => {
    const goldens = METRIC_GOLDENS.filter(({ metric }) => metric === name);
    assertEquals(goldens.length, 67);
    const { score } = createMetric(name, { clean: false });
    for (const g of goldens) {
      const percent = roundPython2(score(g.prediction, g.answers) * 100);
      assertEquals(percent, g.expected, JSON.stringify(g));
    }
  });
}

for (
  const [metric, count, compute] of [
    ["jieba_cut", 150, (g) => cutChinese(g.text)],
    ["normalize_answer", 134, (g) => normalizeEnglish(g.text)],
    ["normalize_zh_answer", 132, (g) => normalizeChinese(g.text)],
    ["porter_stem", 157, (g) => porterStem(g.word)],
  ] as [string, number, (g: ExtraGolden) => unknown][]
) {
  Deno.test(`${metric} agrees with all ${count} goldens`, () => {
    const goldens = EXTRA_GOLDENS.filter((g) => g.metric === metric);
    assertEquals(goldens.length, count);
    for (const g of goldens) assertEquals(compute(g), g.expected);
  });
}

Deno.test("needle scores agree with all 98 goldens", () => {
  const goldens = EXTRA_GOLDENS.filter((g) => g.metric.startsWith("needle_"));
  assertEquals(goldens.length, 98);
  for (const g of goldens) {
    const score = g.metric === "needle_rouge1_x10"
      ? 10 * needleRouge1(g.response, g.needle)
      : needleWords(g.response, g.expected_answer);
    assertAlmostEquals(score, g.expected, TOLERANCE, JSON.stringify(g));
  }
});

Deno.test("every golden record is covered by a test", () => {
  assertEquals(METRIC_GOLDENS.length, 920);
  assertEquals(EXTRA_GOLDENS.length, 150 + 134 + 132 + 157 + 98);
  assertEquals(DATA_SET_GOLDENS.length, 32);
});

Deno.test("data set scores, LongBench-E bins and RULER task scores agree with all goldens exactly", () => {
  for (const g of DATA_SET_GOLDENS) {
    if (g.kind === "ruler_string_match_all") {
      const { score } = createMetric("string_match_all");
      const scores = g.records.map((r) => score(r.pred, r.answers));
      assertEquals(rulerScore(scores), g.expected);
      continue;
    }
    const labels = g.records.at(-1)?.all_classes ?? null;
    const variants = g.expected_levenshtein === undefined
      ? [["indel", g.expected] as const]
      : [
        ["indel", g.expected_levenshtein] as const,
        ["difflib", g.expected] as const,
      ];
    for (const [similarity, expected] of variants) {
      const { score } = longbenchMetric(g.dataset, {
        similarity,
        ...(labels === null ? {} : { labels }),
      });
      const scores = g.records.map((r) => ({
        score: score(r.pred, r.answers),
        length: r.length,
      }));
      assertEquals(longbenchScore(scores.map((s) => s.score)), expected);
      assertEquals({ ...longbenchBins(scores) }, { ...g.expected_by_length });
    }
  }
  assert(DATA_SET_GOLDENS.some((g) => g.expected === 0.12), "ties are probed");
});
