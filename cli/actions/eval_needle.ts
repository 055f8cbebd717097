// deno-lint-ignore-file no-console -- the command line prints
import { basename, join } from "@std/path";
import { byConfiguration, recordsOfKeys } from "../../eval/collect.ts";
import {
  needleCells,
  needleCsv,
  needleMarkdown,
  needleRows,
} from "../../eval/needle.ts";
import { needleHeatMap, renderPng, renderSvg } from "../../eval/plots/mod.ts";
import { RecordStore } from "../../eval/records/mod.ts";
import { runTask } from "../../eval/runner.ts";
import { needleTask } from "../../tasks/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { protocolOf } from "../commands/_shared.ts";
import { commit } from "./_project.ts";
import {
  bytes,
  configurationsOf,
  openModel,
  printColumns,
  printJson,
  progressBar,
} from "./_runtime.ts";

/** `kvf eval needle`. */
export async function evalNeedleAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  const seed = flags.seed as number;
  const task = needleTask({
    lengths: flags.lengths as number[],
    depths: flags.depths as number,
    depthSpacing: flags.spacing as "linear" | "sigmoid",
    examplesPerCell: flags.examples as number,
    seed,
    ...needleOf(flags),
    ...(flags.haystack === undefined
      ? {}
      : { haystack: text(flags, "haystack")! }),
  });
  const out = text(flags, "out")!;
  using model = await openModel(flags);
  using store = await RecordStore.open(out);
  const bar = progressBar(
    "needle",
    flags.quiet === true || flags.json === true,
  );
  const finished = store.size;
  const keys = new Set<string>();
  try {
    await runTask(model, task, configurations, {
      store,
      modelName: basename(text(flags, "model")!),
      commit: commit(),
      seed,
      protocol: protocolOf(flags),
      keys,
      onProgress: (done, total) => bar.set(done, total),
    });
  } finally {
    bar.stop();
  }
  const records = [
    ...byConfiguration(await recordsOfKeys(out, keys), configurations).values(),
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
    title: `Needle in a haystack, ${basename(text(flags, "model")!)}`,
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
      "ms/token",
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

function needleOf(
  flags: Call["flags"],
): { needle?: { text: string; question: string; answer: string } } {
  const parts = [
    text(flags, "needle"),
    text(flags, "question"),
    text(flags, "answer"),
  ];
  if (parts.every((part) => part === undefined)) return {};
  const [needle, question, answer] = parts;
  if (needle === undefined || question === undefined || answer === undefined) {
    throw new UsageError(
      "Cannot hide a needle as --needle, --question and --answer must be given together",
    );
  }
  return { needle: { text: needle, question, answer } };
}
