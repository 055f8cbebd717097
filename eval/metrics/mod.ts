/**
 * Metrics of the benchmarks, equal to the reference implementations to the last digit.
 *
 * Permissions: none, except read of `node_modules/jieba-wasm` when a Chinese metric is used.
 *
 * @module
 */
export { cutChinese } from "./chinese.ts";
export { classification } from "./classification.ts";
export { codeSim, firstCodeLine, lineSimilarity } from "./code_sim.ts";
export type { LineSimilarity } from "./code_sim.ts";
export { contains } from "./contains.ts";
export {
  LONGBENCH_SCORING,
  longbenchAverages,
  longbenchBins,
  longbenchMetric,
  longbenchScore,
  RULER_THRESHOLD,
  rulerScore,
  rulerSummary,
} from "./data_sets.ts";
export type {
  LengthBins,
  LongBenchAverages,
  LongBenchScoring,
  RulerSummary,
} from "./data_sets.ts";
export { needleRouge1, needleWords } from "./needle.ts";
export { count, retrieval, retrievalChinese } from "./numbers.ts";
export { porterStem } from "./porter.ts";
export { roundNumpy2, roundPython2 } from "./_python_text.ts";
export {
  normalizeChinese,
  normalizeEnglish,
  qaF1,
  qaF1Chinese,
  tokenF1,
} from "./qa_f1.ts";
export {
  createMetric,
  firstLine,
  isMetricName,
  METRIC_DEFINITIONS,
  METRICS,
} from "./registry.ts";
export type {
  MetricDefinition,
  MetricName,
  ResolvedMetric,
} from "./registry.ts";
export type { Json, Metric } from "../../tasks/types.ts";
export { rougeL, rougeLChinese } from "./rouge.ts";
export type { RougeDepth } from "./rouge.ts";
export {
  cleanRulerPrediction,
  stringMatchAll,
  stringMatchPart,
} from "./string_match.ts";
