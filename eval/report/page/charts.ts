/**
 * Curves and heat maps with hints. Part of the page: it runs in the browser.
 *
 * @module
 */
import { draw, make, percent, selectBox } from "./dom.ts";
import { hideHint, middleOf, showHint } from "./hint.ts";
import type { Chart, HeatPanel } from "./pictures.ts";

const WIDTH = 640, HEIGHT = 360;
const LEFT = 52, RIGHT = 16, TOP = 22, BOTTOM = 46;

function scales(chart: Chart) {
  const all = chart.series.flatMap(({ points }) => points);
  const xs = [...all.map(({ x }) => x), ...chart.ticks.map(({ x }) => x)]
    .map(Math.log2);
  const least = Math.min(...xs), most = Math.max(...xs);
  const lows = [...all.map(({ low }) => low), chart.reference.y];
  const highs = [...all.map(({ high }) => high), chart.reference.y];
  const bottom = Math.max(0, Math.floor(Math.min(...lows) * 10) / 10);
  const top = Math.min(1, Math.ceil(Math.max(...highs) * 10 + 0.01) / 10);
  const wide = WIDTH - LEFT - RIGHT - 28;
  return {
    x: (x: number) =>
      LEFT + 14 +
      (most === least
        ? wide / 2
        : wide * (Math.log2(x) - least) / (most - least)),
    y: (y: number) =>
      HEIGHT - BOTTOM -
      (HEIGHT - TOP - BOTTOM) * (y - bottom) / ((top - bottom) || 1),
    bottom,
    top,
  };
}

function axes(chart: Chart, { x, y, bottom, top }: ReturnType<typeof scales>) {
  const step = top - bottom > 0.5 ? 0.2 : top - bottom > 0.2 ? 0.1 : 0.05;
  const parts: SVGElement[] = [];
  for (let v = bottom; v < top + 1e-9; v += step) {
    parts.push(
      draw("line", {
        class: "grid",
        x1: LEFT,
        x2: WIDTH - RIGHT,
        y1: y(v),
        y2: y(v),
      }),
      draw(
        "text",
        { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" },
        String(Math.round(100 * v)),
      ),
    );
  }
  for (const tick of chart.ticks) {
    parts.push(
      draw(
        "text",
        {
          x: x(tick.x),
          y: HEIGHT - BOTTOM + 18,
          "text-anchor": "middle",
        },
        tick.text,
      ),
    );
  }
  parts.push(
    draw("text", {
      x: (LEFT + WIDTH - RIGHT) / 2,
      y: HEIGHT - 6,
      "text-anchor": "middle",
    }, chart.xTitle),
    draw("text", {
      transform: `translate(14 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`,
      "text-anchor": "middle",
    }, chart.yTitle),
  );
  return parts;
}

/** Outline of a point; series differ in it as well as in colour. */
function shape(series: number, x: number, y: number): string {
  const r = 5;
  const at = `M${x} ${y}m`;
  return [
    `${at}${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    `${at}${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    `${at}0 ${-1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${
      -1.4 * r
    } ${-1.4 * r}z`,
    `${at}0 ${-1.3 * r}l${1.3 * r} ${2.2 * r}h${-2.6 * r}z`,
    `${at}0 ${1.3 * r}l${1.3 * r} ${-2.2 * r}h${-2.6 * r}z`,
    `${at}${-r / 2} ${-1.3 * r}h${r}v${0.8 * r}h${0.8 * r}v${r}h${-0.8 * r}v${
      0.8 * r
    }h${-r}v${-0.8 * r}h${-0.8 * r}v${-r}h${0.8 * r}z`,
  ][(series + Math.floor(series / 6)) % 6]!;
}

/** Draws curves; points answer to the pointer, and to arrow keys when the chart has the focus. */
export function curves(chart: Chart): HTMLElement {
  const scale = scales(chart);
  const { x, y } = scale;
  const path = (points: readonly { x: number; y: number }[]) =>
    points.map((p, i) => `${i === 0 ? "M" : "L"}${x(p.x)} ${y(p.y)}`).join("");
  const dots: SVGElement[][] = [];
  const groups = chart.series.map(({ points }, i) => {
    const low = points.map((p) => ({ x: p.x, y: p.low })).reverse();
    const high = points.map((p) => ({ x: p.x, y: p.high }));
    dots[i] = points.map((p) =>
      draw("path", {
        class: "point",
        d: shape(i, x(p.x), y(p.y)),
        mouseenter: (event) => {
          groups[i]?.parentNode?.append(groups[i]!);
          const { clientX, clientY } = event as MouseEvent;
          showHint(p.lines, { x: clientX, y: clientY });
        },
        mouseleave: hideHint,
      })
    );
    return draw(
      "g",
      { class: `series c${i % 6}` },
      draw("path", {
        class: "band",
        d: points.length > 1
          ? `${path([...high, ...low])}Z`
          : `M${x(points[0]!.x)} ${y(points[0]!.low)}V${y(points[0]!.high)}`,
      }),
      draw("path", { class: "line", d: path(points) }),
      ...dots[i],
    );
  });
  const at = { series: 0, point: -1 };
  const picture = draw(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      tabindex: 0,
      "aria-label":
        `${chart.title}. ${chart.series.length} curves; arrow keys go from point to point. The table above has the numbers.`,
      keydown: (event) => {
        const { key } = event as KeyboardEvent;
        const moves: { [key: string]: [number, number] } = {
          ArrowRight: [0, 1],
          ArrowLeft: [0, -1],
          ArrowDown: [1, 0],
          ArrowUp: [-1, 0],
        };
        const move = moves[key];
        if (move === undefined) return;
        event.preventDefault();
        const n = chart.series.length;
        at.series = (at.series + move[0] + n) % n;
        const { points } = chart.series[at.series]!;
        at.point = Math.max(
          0,
          Math.min(points.length - 1, at.point + move[1]),
        );
        showHint(
          points[at.point]!.lines,
          middleOf(dots[at.series]![at.point]!),
          true,
        );
      },
      blur: hideHint,
    },
    ...axes(chart, scale),
    draw("line", {
      class: "reference",
      x1: LEFT,
      x2: WIDTH - RIGHT,
      y1: y(chart.reference.y),
      y2: y(chart.reference.y),
    }),
    draw("text", {
      class: "reference-name",
      x: WIDTH - RIGHT,
      y: y(chart.reference.y) - 6,
      "text-anchor": "end",
    }, chart.reference.name),
    ...groups,
  );
  const legend = make(
    "p",
    { class: "legend" },
    ...chart.series.map(({ name }, i) => {
      const button = make(
        "button",
        {
          type: "button",
          "aria-pressed": "true",
          class: `c${i % 6}`,
          title: `Show or hide ${name}`,
          click: () => {
            const on = button.getAttribute("aria-pressed") !== "true";
            button.setAttribute("aria-pressed", String(on));
            groups[i]!.style.display = on ? "" : "none";
          },
        },
        draw(
          "svg",
          { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" },
          draw("path", { class: "point", d: shape(i, 0, 0) }),
        ),
        name,
      );
      return button;
    }),
  );
  return make(
    "figure",
    { class: "chart" },
    make("figcaption", {}, chart.title),
    picture,
    legend,
  );
}

/** Draws heat maps side by side; cells answer to the pointer and to arrow keys. */
export function heatMaps(title: string, panels: HeatPanel[]): HTMLElement {
  const up = (a: number, b: number) => a - b;
  const cells = panels.flatMap((panel) => panel.cells);
  const lengths = [...new Set(cells.map(({ length }) => length))].sort(up);
  const depths = [...new Set(cells.map(({ depth }) => depth))].sort(up);
  const wide = 180 / lengths.length;
  const tall = Math.max(10, Math.min(22, 130 / depths.length));
  const height = tall * depths.length;
  const maps = panels.map((panel) => {
    const mean = panel.cells.reduce((sum, { score }) => sum + score, 0) /
      panel.cells.length;
    const rects = new Map<string, SVGElement>();
    const linesOf = (cell: HeatPanel["cells"][number]) => [
      panel.title,
      `${cell.length.toLocaleString("en")} tokens, depth ${cell.depth} %`,
      `score ${percent(cell.score)}, ${cell.n} ${
        cell.n === 1 ? "example" : "examples"
      }`,
    ];
    for (const cell of panel.cells) {
      rects.set(
        `${lengths.indexOf(cell.length)} ${depths.indexOf(cell.depth)}`,
        draw("rect", {
          x: 34 + wide * lengths.indexOf(cell.length) + 0.5,
          y: tall * depths.indexOf(cell.depth) + 0.5,
          width: wide - 1,
          height: tall - 1,
          style: `--score:${cell.score}`,
          mousemove: (event) => {
            const { clientX, clientY } = event as MouseEvent;
            showHint(linesOf(cell), { x: clientX, y: clientY });
          },
          mouseleave: hideHint,
        }),
      );
    }
    const at = { column: 0, row: 0 };
    const picture = draw(
      "svg",
      {
        viewBox: `0 0 220 ${height + 22}`,
        class: "heat",
        role: "img",
        tabindex: 0,
        "aria-label": `${panel.title}: mean ${
          percent(mean)
        }; arrow keys go from cell to cell`,
        keydown: (event) => {
          const { key } = event as KeyboardEvent;
          const [dx, dy] = {
            ArrowRight: [1, 0],
            ArrowLeft: [-1, 0],
            ArrowDown: [0, 1],
            ArrowUp: [0, -1],
          }[key] ?? [0, 0];
          if (dx === 0 && dy === 0) return;
          event.preventDefault();
          const clamp = (n: number, most: number) =>
            Math.max(0, Math.min(most - 1, n));
          at.column = clamp(at.column + dx!, lengths.length);
          at.row = clamp(at.row + dy!, depths.length);
          const cell = panel.cells.find(({ length, depth }) =>
            length === lengths[at.column] && depth === depths[at.row]
          );
          const rect = rects.get(`${at.column} ${at.row}`);
          if (cell && rect) showHint(linesOf(cell), middleOf(rect), true);
        },
        blur: hideHint,
      },
      ...rects.values(),
      ...depths.flatMap((depth, i) =>
        i % Math.ceil(depths.length / 5) === 0
          ? [
            draw("text", {
              x: 30,
              y: tall * (i + 0.5) + 4,
              "text-anchor": "end",
            }, String(depth)),
          ]
          : []
      ),
      ...lengths.flatMap((length, i) =>
        i % Math.ceil(lengths.length / 4) === 0
          ? [
            draw("text", {
              x: 34 + wide * (i + 0.5),
              y: height + 15,
              "text-anchor": "middle",
            }, length.toLocaleString("en")),
          ]
          : []
      ),
    );
    const budget = panel.budget ?? "";
    return make(
      "figure",
      { "data-budget": budget },
      make("figcaption", {}, panel.title, " ", make("b", {}, percent(mean))),
      picture,
    );
  });
  const budgets = [
    ...new Set(panels.flatMap(({ budget }) => budget ?? [])),
  ].sort(up);
  const choice = selectBox("Budget", [
    ["", "all"],
    ...budgets.map((budget) => [String(budget), String(budget)] as const),
  ], (value) => {
    for (const map of maps) {
      const { budget } = map.dataset;
      map.hidden = value !== "" && budget !== "" && budget !== value;
    }
  });
  return make(
    "div",
    { class: "heat-maps" },
    make("h4", {}, title),
    ...(budgets.length > 1
      ? [make("p", { class: "no-print" }, choice.box)]
      : []),
    make(
      "p",
      { class: "note" },
      "Columns are context lengths in tokens, rows are depths of the needle in percent. ",
      make("span", { class: "scale", "aria-hidden": "true" }),
      " from 0 to 100 %.",
    ),
    make("div", { class: "panels" }, ...maps),
  );
}
