// deno-lint-ignore-file no-console -- the command line prints
import { join } from "@std/path";
import { byConfiguration } from "../../eval/collect.ts";
import {
  needleCells,
  needleCsv,
  needleMarkdown,
  needleRows,
} from "../../eval/needle.ts";
import { needleHeatMap, renderPng, renderSvg } from "../../eval/plots/mod.ts";
import type { EvalRecord } from "../../eval/records/mod.ts";
import { type NeedleOptions, needleTask } from "../../tasks/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { runBenchmark } from "./_benchmark.ts";
import {
  bytes,
  configurationsOf,
  printColumns,
  printJson,
} from "./_runtime.ts";

/** `kvf eval needle`. */
export async function evalNeedleAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  const haystack = text(flags, "haystack");
  const task = needleTask({
    lengths: flags.lengths as number[],
    depths: flags.depths as number | number[],
    depthSpacing: flags.spacing as "linear" | "sigmoid",
    examplesPerCell: flags.examples as number,
    seed: flags.seed as number,
    buffer: flags.buffer as number,
    maxNewTokens: flags.maxNewTokens as number,
    stopAtNewline: flags.stopAtNewline as boolean,
    ...needleOf(flags),
    ...(haystack === undefined ? {} : { haystack }),
  });
  const out = text(flags, "out")!;
  const benchmark = await runBenchmark(call, [task], configurations);
  const { finished } = benchmark;
  const records = [
    ...byConfiguration(
      benchmark.records.map((record) => withScore(record, flags.score)),
      configurations,
    ).values(),
  ].flat();
  const rows = needleRows(records);
  const cells = needleCells(records);
  const files = {
    table: join(out, "needle.md"),
    cells: join(out, "needle.csv"),
    svg: join(out, "needle.svg"),
    png: join(out, "needle.png"),
  };
  const panels = [...Map.groupBy(cells, ({ configuration }) => configuration)]
    .map(([title, scores]) => ({ title, scores }));
  const svg = await renderSvg(needleHeatMap(panels, {
    title: `Needle in a haystack, ${benchmark.model}`,
    values: cells.length <= 200 * panels.length,
  }));
  Deno.writeTextFileSync(files.table, needleMarkdown(rows));
  Deno.writeTextFileSync(files.cells, needleCsv(cells));
  Deno.writeTextFileSync(files.svg, svg);
  Deno.writeFileSync(files.png, await renderPng(svg));
  if (flags.json) {
    printJson({ rows, files });
    return 0;
  }
  if (finished > 0) {
    console.error(`${finished} finished records were there already`);
  }
  printColumns([
    [
      "configuration",
      "score",
      "95 % interval",
      "exact",
      "cache",
      "ms/step",
      "examples",
    ],
    ...rows.map((row) => [
      row.configuration,
      `${(100 * row.score).toFixed(1)} %`,
      `${(100 * row.interval[0]).toFixed(1)} to ${
        (100 * row.interval[1]).toFixed(1)
      }`,
      `${(100 * row.exact).toFixed(1)} %`,
      bytes(row.residentBytes),
      row.msPerToken.toFixed(2),
      String(row.n),
    ]),
  ]);
  console.log(
    `\nheat map: ${files.png} and ${files.svg}\ntable:    ${files.table}, cells: ${files.cells}`,
  );
  return 0;
}

/** The metric of a `--score`. */
const SCORES: Record<string, string> = {
  rouge1: "needle_rouge1",
  words: "needle_words",
};

/** The record with the score that was asked for in the place of its own. */
function withScore(record: EvalRecord, score: unknown): EvalRecord {
  const name = SCORES[String(score)];
  if (name === undefined) return record;
  return { ...record, score: record.scores![name]! };
}

function needleOf(flags: Call["flags"]): Pick<NeedleOptions, "needle"> {
  const needle = text(flags, "needle");
  const question = text(flags, "question");
  const answer = text(flags, "answer");
  const template = text(flags, "template");
  const answerPrefix = text(flags, "answerPrefix");
  const all = [needle, question, answer, template, answerPrefix];
  if (all.every((part) => part === undefined)) return {};
  if (needle === undefined || question === undefined || answer === undefined) {
    throw new UsageError(
      "Cannot hide a needle as --needle, --question and --answer must be given together (--template and --answer-prefix go with them)",
    );
  }
  return {
    needle: {
      text: needle,
      question,
      answer,
      ...(answerPrefix === undefined ? {} : { answerPrefix }),
      ...(template === undefined
        ? {}
        : { template: Deno.readTextFileSync(template) }),
    },
  };
}
