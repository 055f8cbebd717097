// deno-lint-ignore-file no-console -- the command line prints
import { basename, join, resolve } from "@std/path";
import { renderPng, renderSvg } from "../../eval/plots/mod.ts";
import {
  type EvalRecord,
  readRecords,
  readRunMeta,
} from "../../eval/records/mod.ts";
import {
  collectSections,
  costTable,
  differenceTable,
  type IllustratedSection,
  longTable,
  pageHtml,
  pageViewOf,
  plannedOf,
  reportMarkdown,
  scoreTable,
  sectionFigures,
  summarise,
} from "../../eval/report/mod.ts";
import { toCsv, toTerminal } from "../../eval/tables/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { printJson } from "./_runtime.ts";

/** `kvf report`. */
export async function reportAction({ args, flags }: Call): Promise<number> {
  const dir = args[0]!;
  const out = text(flags, "out") ?? join(dir, "report");
  const level = flags.level as number;
  const minEffect = flags.minEffect === undefined
    ? undefined
    : flags.minEffect as number / 100;
  const records: EvalRecord[] = [];
  for await (const record of readRecords(dir)) records.push(record);
  if (records.length === 0) {
    throw new UsageError(
      `Cannot report as there must be records: there is none in "${dir}"`,
    );
  }
  const reference = text(flags, "reference"), commit = text(flags, "commit");
  const sections = collectSections(records, {
    partial: flags.partial === true,
    planned: plannedOf(readRunMeta(dir)),
    ...(reference === undefined ? {} : { reference }),
    ...(commit === undefined ? {} : { commit }),
  });
  const illustrated = sections.map((section, i): IllustratedSection => {
    const summary = summarise(section, {
      level,
      resamples: flags.resamples as number,
      pairs: flags.pairs === true,
      ...(minEffect === undefined ? {} : { minEffect }),
    });
    const prefix = sections.length > 1 ? `${i + 1}_` : "";
    const figures = sectionFigures(summary, { level }).map((figure) => ({
      ...figure,
      name: prefix + figure.name,
    }));
    return { summary, figures };
  });
  const summaries = illustrated.map(({ summary }) => summary);
  Deno.mkdirSync(out, { recursive: true });
  const files: string[] = [];
  const write = (name: string, data: string | Uint8Array): void => {
    const path = join(out, name);
    if (typeof data === "string") Deno.writeTextFileSync(path, data);
    else Deno.writeFileSync(path, data);
    files.push(path);
  };
  write(
    "report.md",
    reportMarkdown(illustrated, {
      level,
      ...(minEffect === undefined ? {} : { minEffect }),
    }),
  );
  write("report.csv", toCsv(longTable(summaries)));
  for (const { figures } of illustrated) {
    for (const { name, plot } of figures) {
      const svg = await renderSvg(plot);
      write(`${name}.svg`, svg);
      write(`${name}.png`, await renderPng(svg));
    }
  }
  if (flags.html) {
    write(
      "report.html",
      pageHtml({
        title: `Report on ${basename(resolve(dir))}`,
        sections: summaries,
        views: await Promise.all(viewsOf(dir).map(pageViewOf)),
        level,
        ...(minEffect === undefined ? {} : { minEffect }),
      }),
    );
  }
  if (flags.json) {
    printJson({
      sections: summaries.map(({ section, configurations, pairs }) => ({
        title: section.title,
        model: section.model,
        commit: section.commit,
        reference: section.reference,
        leftOut: section.leftOut,
        unfinished: section.unfinished,
        configurations: configurations.map((one) => ({
          ...one,
          scores: Object.fromEntries(one.scores),
        })),
        pairs,
      })),
      files,
    });
    return 0;
  }
  for (const summary of summaries) {
    if (summaries.length > 1) console.log(`\n${summary.section.title}`);
    console.log(toTerminal(scoreTable(summary), { colour: false }));
    console.log(
      toTerminal(differenceTable(summary, minEffect), { colour: false }),
    );
    console.log(toTerminal(costTable(summary), { colour: false }));
  }
  console.log(files.join("\n"));
  return 0;
}

/** Views that `kvf view --into` kept in the folder, by file name. */
function viewsOf(dir: string): string[] {
  return [...Deno.readDirSync(dir)]
    .filter(({ name }) => name.endsWith(".view.json"))
    .map(({ name }) => name).sort()
    .map((name) => Deno.readTextFileSync(join(dir, name)));
}
