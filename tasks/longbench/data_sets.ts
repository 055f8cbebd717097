/**
 * The 21 data sets of LongBench: what they are, how they are scored, how long answers may be.
 *
 * Benchmark: LongBench, https://arxiv.org/abs/2308.14508
 *
 * @module
 */

/** Facts of one data set. */
export interface LongBenchDataSet {
  /** One of LongBench's six categories. */
  category: string;
  /** Name of the metric in `eval/metrics`. */
  metric: string;
  /** Language: `en`, `zh` or `code`. */
  language: "en" | "zh" | "code";
  /** New tokens at most, as in LongBench's `dataset2maxlen.json`. */
  maxNewTokens: number;
  /** Whether the prompt is a text to be continued (examples, code), which no chat form may surround. */
  completion: boolean;
  /** Whether only the first line of an answer is scored. */
  firstLine: boolean;
  /** Whether LongBench-E has it. */
  extended: boolean;
}

/** Category, metric, language, new tokens; then marks: c completion, f first line, e in LongBench-E. */
const ROWS: readonly string[] = [
  "narrativeqa         | single-document QA | qa_f1          | en   | 128 |",
  "qasper              | single-document QA | qa_f1          | en   | 128 | e",
  "multifieldqa_en     | single-document QA | qa_f1          | en   |  64 | e",
  "multifieldqa_zh     | single-document QA | qa_f1_zh       | zh   |  64 |",
  "hotpotqa            | multi-document QA  | qa_f1          | en   |  32 | e",
  "2wikimqa            | multi-document QA  | qa_f1          | en   |  32 | e",
  "musique             | multi-document QA  | qa_f1          | en   |  32 |",
  "dureader            | multi-document QA  | rouge_zh       | zh   | 128 |",
  "gov_report          | summarisation      | rouge          | en   | 512 | e",
  "qmsum               | summarisation      | rouge          | en   | 512 |",
  "multi_news          | summarisation      | rouge          | en   | 512 | e",
  "vcsum               | summarisation      | rouge_zh       | zh   | 512 |",
  "trec                | few-shot           | classification | en   |  64 | cfe",
  "triviaqa            | few-shot           | qa_f1          | en   |  32 | cfe",
  "samsum              | few-shot           | rouge          | en   | 128 | cfe",
  "lsht                | few-shot           | classification | zh   |  64 | cf",
  "passage_count       | synthetic          | count          | en   |  32 | e",
  "passage_retrieval_en | synthetic         | retrieval      | en   |  32 | e",
  "passage_retrieval_zh | synthetic         | retrieval_zh   | zh   |  32 |",
  "lcc                 | code               | code_sim       | code |  64 | ce",
  "repobench-p         | code               | code_sim       | code |  64 | ce",
];

/** The data sets by name, in the benchmark's order. */
export const LONGBENCH_DATA_SETS: ReadonlyMap<string, LongBenchDataSet> =
  new Map(
    ROWS.map((row) => {
      const [
        name = "",
        category = "",
        metric = "",
        language,
        tokens,
        marks = "",
      ] = row.split("|").map((cell) => cell.trim());
      return [name, {
        category,
        metric,
        language: language as LongBenchDataSet["language"],
        maxNewTokens: Number(tokens),
        completion: marks.includes("c"),
        firstLine: marks.includes("f"),
        extended: marks.includes("e"),
      }];
    }),
  );
