import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  accuracyAgainstBudget,
  accuracyAgainstBytes,
  needleHeatMap,
  renderPng,
  renderSvg,
  rowsPerLayer,
} from "../../eval/plots/mod.ts";
import type { NeedlePanel } from "../../eval/plots/mod.ts";

/** Texts of an SVG in the order in which they are drawn. */
function textsOf(svg: string): string[] {
  return [...svg.matchAll(/<(?:text|tspan)[^>]*>([^<]+)</g)].map(([, text]) =>
    text ?? ""
  );
}

/** Fill colours of the cells of all heat maps. */
function cellColours(svg: string): string[] {
  return [
    ...svg.matchAll(/aria-roledescription="rect mark"[^>]*fill="([^"]+)"/g),
  ]
    .map(([, fill]) => fill ?? "");
}

const PANELS: NeedlePanel[] = [
  {
    title: "FullKV",
    scores: [
      { length: 2000, depth: 0, score: 1 },
      { length: 1000, depth: 0, score: 0.5 },
      { length: 1000, depth: 100, score: 0 },
      { length: 1000, depth: 100, score: 0 },
    ],
  },
  {
    title: "SnapKV",
    scores: [{ length: 2000, depth: 100, score: 0.25 }],
  },
];

function series(count: number) {
  return Array.from({ length: count }, (_, i) => ({
    name: `method ${i}`,
    points: [128, 32].map((budget) => ({
      budget,
      residentBytes: budget * 4096,
      score: 0.5 + i / 100,
      low: 0.4,
      high: 0.7,
    })),
  }));
}

const REFERENCE = {
  name: "FullKV",
  score: 0.98,
  low: 0.95,
  high: 1,
  residentBytes: 8 << 20,
};

Deno.test({
  name: "needleHeatMap draws one panel per method with its mean over places",
  permissions: "none",
  fn: async () => {
    const texts = textsOf(await renderSvg(needleHeatMap(PANELS)));
    // The doubled place counts once: (1 + 0.5 + 0) / 3.
    for (const text of ["FullKV", "mean 0.500", "SnapKV", "mean 0.250"]) {
      assert(texts.includes(text), texts.join("|"));
    }
    assertEquals(texts.filter((text) => text === "1,000").length, 2);
    assertEquals(texts.filter((text) => text === "Score").length, 1);
    assert(texts.indexOf("0") < texts.indexOf("100"), "depth grows downwards");
  },
});

Deno.test("needleHeatMap colours scores from 0 over 0.5 to 1 and leaves gaps blank", async () => {
  const colours = cellColours(await renderSvg(needleHeatMap(PANELS)));
  assertEquals(colours.length, 4);
  for (
    const colour of [
      "rgb(12, 215, 159)", // #0CD79F, score 1
      "rgb(235, 184, 57)", // #EBB839, score 0.5
      "rgb(240, 73, 110)", // #F0496E, score 0
      "rgb(238, 129, 84)", // half way between the last two
    ]
  ) {
    assert(colours.includes(colour), colours.join(" "));
  }
});

Deno.test("needleHeatMap prints scores when asked", async () => {
  const plot = needleHeatMap(PANELS, { values: true, title: "Needle" });
  const texts = textsOf(await renderSvg(plot));
  assert(texts.includes("0.25") && texts.includes("Needle"), texts.join("|"));
});

Deno.test("needleHeatMap refuses to draw nothing", () => {
  assertThrows(() => needleHeatMap([]), RangeError, "0 panels");
  assertThrows(
    () => needleHeatMap([{ title: "H2O", scores: [] }]),
    RangeError,
    '"H2O"',
  );
});

Deno.test("accuracyAgainstBudget names methods, budgets and the reference", async () => {
  const plot = accuracyAgainstBudget(series(3), {
    title: "RULER",
    reference: REFERENCE,
  });
  const texts = textsOf(await renderSvg(plot));
  for (
    const text of ["RULER", "method 0", "method 2", "32", "128", "FullKV"]
  ) {
    assert(texts.includes(text), `${text} in ${texts.join("|")}`);
  }
});

Deno.test("accuracyAgainstBudget gives each of many methods its own panel", async () => {
  const svg = await renderSvg(accuracyAgainstBudget(series(9)));
  const texts = textsOf(svg);
  for (let i = 0; i < 9; i++) {
    assertEquals(texts.filter((text) => text === `method ${i}`).length, 1);
  }
});

Deno.test("accuracyAgainstBytes labels bytes with binary units", async () => {
  const plot = accuracyAgainstBytes(series(2), { reference: REFERENCE });
  const texts = textsOf(await renderSvg(plot));
  for (const text of ["128 KiB", "1 MiB", "8 MiB"]) {
    assert(texts.includes(text), `${text} in ${texts.join("|")}`);
  }
});

Deno.test("rowsPerLayer shows every layer of a small model and the budget", async () => {
  const plot = rowsPerLayer(
    [{ name: "pyramidkv", rows: [[90, 110], [60, 60], [30, 30]] }],
    { budget: 64 },
  );
  const texts = textsOf(await renderSvg(plot));
  for (const text of ["0", "1", "2", "budget", "pyramidkv"]) {
    assert(texts.includes(text), `${text} in ${texts.join("|")}`);
  }
});

Deno.test("curves refuse empty series and names that occur twice", () => {
  assertThrows(() => accuracyAgainstBudget([]), RangeError, "0 curves");
  assertThrows(
    () => rowsPerLayer([{ name: "a", rows: [] }]),
    RangeError,
    '"a" holds 0',
  );
  const [one] = series(1);
  assert(one !== undefined);
  assertThrows(
    () => accuracyAgainstBudget([one, one]),
    RangeError,
    "method 0, method 0",
  );
});

Deno.test("curves of a single point are drawn, and values that cannot be are refused", async () => {
  const point = {
    budget: 64,
    residentBytes: 5000,
    score: 1,
    low: 1,
    high: 1,
  };
  const only = [{ name: "one", points: [point] }];
  const byBudget = await renderSvg(accuracyAgainstBudget(only));
  const byBytes = await renderSvg(accuracyAgainstBytes(only));
  for (const svg of [byBudget, byBytes]) assert(!svg.includes("NaN"));
  assert(textsOf(byBudget).includes("64"));
  const broken = [{ name: "one", points: [{ ...point, residentBytes: 0 }] }];
  assertThrows(() => accuracyAgainstBytes(broken), RangeError, '"one" holds');
  const unknown = [{ name: "one", points: [{ ...point, low: NaN }] }];
  assertThrows(() => accuracyAgainstBudget(unknown), RangeError, '"low":null');
});

Deno.test("renderSvg gives the same text every time and leaves data as it was", async () => {
  const plot = needleHeatMap(PANELS);
  const before = JSON.stringify(plot);
  assertEquals(await renderSvg(plot), await renderSvg(plot));
  assertEquals(JSON.stringify(plot), before);
});

Deno.test("renderSvg throws what Vega would print", async () => {
  const spec = {
    data: { values: [{ a: 1 }] },
    mark: "point",
    encoding: {
      x: { field: "a", type: "quantitative", nonsense: 1 },
      wrong: {},
    },
  };
  await assertRejects(() => renderSvg({ spec }), Error, "must be sound");
});

Deno.test({
  name: "renderPng draws text, reading only the rasteriser and two fonts",
  permissions: {
    read: ["node_modules/@resvg/resvg-wasm", "node_modules/dejavu-fonts-ttf"],
  },
  fn: async () => {
    const svg = (text: string) =>
      `<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20"><text x="2" y="14" font-family="DejaVu Sans" font-size="12">${text}</text></svg>`;
    const empty = await renderPng(svg(""), { scale: 1 });
    const written = await renderPng(svg("KV"), { scale: 1 });
    assertEquals([...empty.subarray(1, 4)], [0x50, 0x4e, 0x47]);
    assert(written.length > empty.length + 50, "text leaves ink");
    const large = await renderPng(svg("KV"), { scale: 3 });
    const size = new DataView(large.buffer, large.byteOffset);
    assertEquals([size.getUint32(16), size.getUint32(20)], [180, 60]);
  },
});
