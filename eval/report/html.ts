/**
 * The report as one HTML file that needs nothing else: no network, no other file.
 *
 * @module
 */
import {
  type Column,
  formatBytes,
  type Table,
  toMarkdown,
} from "../tables/mod.ts";
import { unpackView } from "../view/mod.ts";
import { PAGE_STYLE, pageScript } from "./_page_sources.ts";
import { budgetSeries, needlePanel } from "./figures.ts";
import type { SectionPictures } from "./page/pictures.ts";
import type { ConfigurationSummary, SectionSummary } from "./summarise.ts";
import {
  costTable,
  differenceTable,
  explanation,
  pairTable,
  scoreTable,
} from "./tables.ts";
import type { Cell } from "../tables/mod.ts";

/** A packed view with its title. */
export interface PageView {
  /** What is looked at. */
  title: string;
  /** About the model and the prompt. */
  about: string;
  /** As `packView` wrote it. */
  packed: string;
}

/** What a page shows. */
export interface PageContent {
  /** Title of the page. */
  title: string;
  /** Sections of a report. */
  sections?: readonly SectionSummary[];
  /** Views to explore. */
  views?: readonly PageView[];
  /** Coverage of intervals. Default: 0.95. */
  level?: number;
  /** The effect that was planned for, 0 to 1. */
  minEffect?: number;
}

/**
 * A view for a page, from its packed form.
 *
 * @throws as `unpackView`
 */
export async function pageViewOf(packed: string): Promise<PageView> {
  const { title, model, tokens, configurations } = await unpackView(packed);
  return {
    title,
    about:
      `${model.name}: ${model.layers} layers, ${model.queryHeads} query heads, ${model.kvHeads} KV heads; ${
        tokens.length.toLocaleString("en")
      } prompt tokens; ${configurations.map(({ name }) => name).join(", ")}`,
    packed,
  };
}

const ENTITIES: { [letter: string]: string } = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
};

function escape(text: string): string {
  return text.replaceAll(/[&<>"]/g, (letter) => ENTITIES[letter]!);
}

/** JSON inside a script element. */
function inScript(json: string): string {
  return json.replaceAll("<", "\\u003c");
}

/** Text of single cells, as the Markdown form has it. */
function textOf<Row>(column: Column<Row>, row: Row): string {
  const line = toMarkdown({ columns: [column], rows: [row] }).split("\n")[2]!;
  return line.slice(2, -2).replaceAll("\\|", "|").replaceAll("\\\\", "\\");
}

function cellHtml<Row>(column: Column<Row>, row: Row): string {
  const cell: Cell = column.cell(row);
  const text = escape(textOf(column, row));
  if (typeof cell === "string") return `<td>${text}</td>`;
  const value = cell === null
    ? ""
    : typeof cell === "number"
    ? cell
    : cell.value;
  const shown = text.replace(
    /^(\S+) (\[.*?\])( ≈)?$/,
    (_, number: string, interval: string, noise: string | undefined) =>
      `${number}${
        noise === undefined
          ? ""
          : ' <span class="noise" title="may be chance">≈</span>'
      } <span class="interval">${interval}</span>`,
  );
  return `<td data-value="${Number.isNaN(value) ? "" : value}">${shown}</td>`;
}

/** Columns above which a table is set closer. */
const MANY = 5;

function tableHtml<Row extends { name: string }>(
  caption: string,
  table: Table<Row>,
  reference?: string,
): string {
  const head = table.columns.map(({ title }) =>
    `<th scope="col">${escape(title)}</th>`
  ).join("");
  const rows = table.rows.map((row) =>
    `<tr${row.name === reference ? ' class="is-reference"' : ""}>${
      table.columns.map((column) => cellHtml(column, row)).join("")
    }</tr>`
  ).join("\n");
  const notes = (table.notes ?? []).map((note) =>
    `<p class="note">${escape(note)}</p>`
  ).join("");
  return `<div class="wide"><table class="sortable${
    table.columns.length > MANY ? " many" : ""
  }"><caption>${escape(caption)}</caption><thead><tr>${head}</tr></thead><tbody>
${rows}
</tbody></table></div>${notes}`;
}

/** Data of the charts and heat maps of a section. */
function picturesOf(
  { section, configurations }: SectionSummary,
): SectionPictures {
  const score = (n: number) => `${(100 * n).toFixed(1)} %`;
  const lines = ({ average, cost, name }: ConfigurationSummary) => [
    name,
    `${score(average.mean)}, interval ${score(average.low)} to ${
      score(average.high)
    }`,
    ...(average.difference?.noise
      ? [`the difference to ${section.reference} may be chance`]
      : []),
    `${formatBytes(cost.residentBytes)} resident, ${
      cost.msPerToken.toFixed(2)
    } ms/step`,
  ];
  const reference = configurations.find(({ name }) =>
    name === section.reference
  )!;
  const series = budgetSeries(
    configurations.filter((one) => one !== reference),
  );
  const yTitle = section.dataSets.length === 1
    ? `${section.dataSets[0]} (%)`
    : `Average of ${section.dataSets.length} data sets (%)`;
  const chart = (
    title: string,
    xTitle: string,
    x: (one: ConfigurationSummary & { budget: number }) => number,
    ticks: { x: number; text: string }[],
  ) => ({
    title,
    xTitle,
    yTitle,
    ticks,
    reference: { name: reference.name, y: reference.average.mean },
    series: series.map(({ name, members }) => ({
      name,
      points: members.map((one) => ({
        x: x(one),
        y: one.average.mean,
        low: one.average.low,
        high: one.average.high,
        lines: lines(one),
      })).sort((a, b) => a.x - b.x),
    })),
  });
  const members = series.flatMap((one) => one.members);
  const budgets = [...new Set(members.map(({ budget }) => budget))]
    .sort((a, b) => a - b);
  const bytes = members.map(({ cost }) => cost.residentBytes);
  const charts = series.length === 0 ? [] : [
    chart(
      "Score against budget",
      "Budget (tokens per layer and KV head)",
      ({ budget }) => budget,
      budgets.map((x) => ({ x, text: String(x) })),
    ),
    chart(
      "Score against resident bytes",
      "Resident cache after prefill",
      ({ cost }) => cost.residentBytes,
      powersBetween(Math.min(...bytes), reference.cost.residentBytes)
        .map((x) => ({ x, text: formatBytes(x).replace(/\.0+ /, " ") })),
    ),
  ];
  const heatMaps = section.dataSets.flatMap((dataSet) => {
    const panels = section.configurations.map((one) => ({
      title: one.name,
      ...(typeof one.options.budget === "number"
        ? { budget: one.options.budget }
        : {}),
      cells: cellsOf(needlePanel(one, dataSet).scores),
    }));
    return panels.some(({ cells }) => cells.length === 0)
      ? []
      : [{ title: dataSet, panels }];
  });
  return { charts, heatMaps };
}

function cellsOf(
  scores: readonly { length: number; depth: number; score: number }[],
) {
  return [
    ...Map.groupBy(scores, ({ length, depth }) => `${length} ${depth}`)
      .values(),
  ].map((group) => ({
    length: group[0]!.length,
    depth: group[0]!.depth,
    score: group.reduce((sum, { score }) => sum + score, 0) / group.length,
    n: group.length,
  }));
}

/** Powers of two from `least` to `most`, and one to either side. */
function powersBetween(least: number, most: number): number[] {
  const first = Math.floor(Math.log2(least));
  const last = Math.ceil(Math.log2(Math.max(least, most)));
  const step = Math.max(1, Math.ceil((last - first) / 7));
  return Array.from(
    { length: Math.floor((last - first) / step) + 1 },
    (_, i) => 2 ** (first + i * step),
  );
}

function sectionHtml(
  summary: SectionSummary,
  id: string,
  { level = 0.95, minEffect }: PageContent,
): string {
  const { section, pairs } = summary;
  const pictures = JSON.stringify(picturesOf(summary));
  return `<section class="report" id="${id}">
<h2>${escape(section.title)}</h2>
<p class="about">Commit ${escape(section.commit)}; ${
    escape(
      Object.entries(section.generation).map(([name, value]) =>
        `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`
      ).join(", "),
    )
  }</p>
<h3>Scores</h3>
${tableHtml("Scores by data set", scoreTable(summary), section.reference)}
${
    explanation(summary, level).map((note) =>
      `<p class="note">${escape(note)}</p>`
    ).join("")
  }
<script type="application/json" class="pictures">${inScript(pictures)}</script>
<h3>Differences to ${escape(section.reference)}</h3>
${
    tableHtml(
      "Paired by example, corrected for the number of comparisons",
      differenceTable(summary, minEffect),
    )
  }
${
    pairs.length === 0
      ? ""
      : `<h3>All pairs</h3>${
        tableHtml("Every pair of configurations", pairTable(summary))
      }`
  }
<h3>Cost</h3>
${tableHtml("Bytes and times", costTable(summary), section.reference)}
</section>`;
}

function viewHtml({ title, about, packed }: PageView, id: string): string {
  const key = Array.from(
    { length: 9 },
    (_, i) => `<span class="k${i}"></span>`,
  ).join("");
  return `<section class="view" id="${id}">
<h2>${escape(title)}</h2>
<p class="about">${escape(about)}</p>
<h3>What is kept of the text</h3>
<p class="note">Shade: <span class="key" aria-hidden="true">${key}</span> from no head to all heads of the chosen layers. Pale text is gone everywhere; <u>underlined</u> is the marked text. Point at a token, or choose one with the arrow keys.</p>
<div class="explorer"></div>
${
    /"attention":null,?[}"]/.test(packed) ? "" : `<h3>Attention</h3>
<div class="attention-map"></div>`
  }
<h3>Rows and bytes by layer and head</h3>
<div class="rows"></div>
<script type="application/json" class="view">${inScript(packed)}</script>
</section>`;
}

/**
 * Writes the page.
 *
 * @param content What it shows.
 */
export function pageHtml(content: PageContent): string {
  const { title, sections = [], views = [] } = content;
  const parts = [
    ...sections.map((summary, i) => ({
      id: `report-${i + 1}`,
      name: summary.section.title,
      html: sectionHtml(summary, `report-${i + 1}`, content),
    })),
    ...views.map((view, i) => ({
      id: `view-${i + 1}`,
      name: view.title,
      html: viewHtml(view, `view-${i + 1}`),
    })),
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>${escape(title)}</title>
<style>
${PAGE_STYLE}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header>
<h1>${escape(title)}</h1>
<nav aria-label="Sections">${
    parts.map(({ id, name }) => `<a href="#${id}">${escape(name)}</a>`)
      .join("\n")
  }<button type="button" id="theme">Colours: auto</button></nav>
</header>
<main id="content">
<noscript><p>Tables stand here as they are; sorting, pictures and the explorer need scripts.</p></noscript>
${parts.map(({ html }) => html).join("\n")}
</main>
<footer>Written by kvf. This file needs no network.</footer>
<script type="module">
${inScriptCode(pageScript())}</script>
</body>
</html>
`;
}

/** Code inside a script element. */
function inScriptCode(code: string): string {
  if (/<\/script|<!--/i.test(code)) {
    throw new SyntaxError(
      "Cannot write the page as its program must not hold what ends a script element",
    );
  }
  return code;
}
