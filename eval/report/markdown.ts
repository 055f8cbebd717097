/**
 * The report as one Markdown page.
 *
 * @module
 */
import { toMarkdown } from "../tables/mod.ts";
import type { Figure } from "./figures.ts";
import type { SectionSummary } from "./summarise.ts";
import {
  costTable,
  differenceTable,
  explanation,
  pairTable,
  scoreTable,
} from "./tables.ts";

/** A section with the pictures that belong to it. */
export interface IllustratedSection {
  /** The numbers. */
  summary: SectionSummary;
  /** Its pictures; `name` is the file's, without ending. */
  figures: readonly Figure[];
}

/**
 * Writes the page. Pictures are linked as `NAME.svg`, beside it.
 *
 * @param sections Sections with pictures.
 * @param options Coverage of intervals; the effect that was planned for.
 */
export function reportMarkdown(
  sections: readonly IllustratedSection[],
  options: { level?: number; minEffect?: number } = {},
): string {
  const parts = sections.flatMap(({ summary, figures }) => {
    const { section, pairs } = summary;
    return [
      `## ${section.title}\n`,
      `Commit ${section.commit}; ${
        Object.entries(section.generation).map(([name, value]) =>
          `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`
        ).join(", ")
      }.\n`,
      "### Scores\n",
      toMarkdown({
        ...scoreTable(summary),
        notes: explanation(summary, options.level ?? 0.95),
      }),
      `### Differences to ${section.reference}\n`,
      toMarkdown(differenceTable(summary, options.minEffect)),
      ...(pairs.length > 0
        ? ["### All pairs\n", toMarkdown(pairTable(summary))]
        : []),
      "### Cost\n",
      toMarkdown(costTable(summary)),
      ...(figures.length > 0 ? ["### Pictures\n"] : []),
      ...figures.map(({ name, caption }) => `![${caption}](${name}.svg)\n`),
    ];
  });
  return ["# Report\n", ...parts].join("\n");
}
