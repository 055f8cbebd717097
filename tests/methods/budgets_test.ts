import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { METHODS, resolveOptions } from "../../methods/mod.ts";
import {
  headBudgets,
  parseHeadFile,
  tableBudgets,
} from "../../methods/parts/head_table.ts";
import { adaptiveBudgets } from "../../methods/parts/adaptive.ts";
import { pyramidBudgets } from "../../methods/parts/pyramid.ts";
import { floorDivide, roundHalfEven } from "../../methods/parts/round.ts";
import { fakeLayer } from "./fake_layer.ts";

const SHAPE = { layers: 4, queryHeads: 4, kvHeads: 2, headDim: 8 };

function policy(name: string, options: Record<string, unknown>) {
  const method = METHODS.get(name)!;
  return method.create(resolveOptions(method, options), SHAPE);
}

Deno.test("any scoring method takes any budget policy", () => {
  const { layer, calls } = fakeLayer(200, { layer: 3 });
  policy("h2o", { budget: 40, budgetPolicy: "pyramid:20" }).afterPrefill?.(
    layer,
  );
  const [last = 0] = pyramidBudgets({
    base: 32,
    candidates: 192,
    layers: 4,
    beta: 20,
    exact: true,
  }, 200).slice(3);
  assertEquals(calls.slice(1), [
    ["fillLast", 8, -Infinity],
    ["topK", last],
    ["retain", [last, last], { last: 8 }],
  ]);
  const other = fakeLayer(200);
  policy("h2o", { budget: 40, budgetPolicy: "adaptive" }).afterPrefill?.(
    other.layer,
  );
  assertEquals(other.calls.map(([name]) => name), [
    "columnMass",
    "fillLast",
    "concentrate",
    "topK",
    "retain",
  ]);
  assertEquals(other.live(), 0);
});

Deno.test("budgets of streamingllm shrink by dropping the least recent rows", () => {
  const { layer, calls } = fakeLayer(200, { layer: 0 });
  policy("streamingllm", { budget: 40, budgetPolicy: "pyramid" })
    .afterPrefill?.(layer);
  assertEquals(calls, [["retain", undefined, { first: 4, last: 71 }]]);
});

Deno.test("what cannot be combined is refused by create, with the reason", () => {
  const cases: [string, Record<string, unknown>, string][] = [
    ["l2norm", { budgetPolicy: "adaptive" }, "must compare between heads"],
    ["streamingllm", { budgetPolicy: "adaptive" }, "must score rows"],
    ["snapkv", { headFile: "x.json" }, "budgetPolicy must be table"],
    [
      "snapkv",
      { budgetPolicy: "adaptive:2" },
      "FLOOR of budgetPolicy must be from 0 to 1: it is 2",
    ],
    ["snapkv", { quant: "nothing:4" }, "quant must be none"],
    ["snapkv", { budgetPolicy: "pyramyd" }, "budgetPolicy"],
  ];
  for (const [name, options, message] of cases) {
    assertThrows(
      () => policy(name, { budget: 64, ...options }),
      Error,
      message,
    );
  }
  assertThrows(
    () => policy("snapkv", { budget: 64, budgetPolicy: "table" }),
    TypeError,
    "needs a file",
  );
});

Deno.test("roundHalfEven and floorDivide round as the reference does", () => {
  assertEquals([0.5, 1.5, 2.5, 56.5, 2.4, 2.6].map(roundHalfEven), [
    0,
    2,
    2,
    56,
    2,
    3,
  ]);
  assertEquals(
    [[202, 1.01], [11, 1.1], [128, 1.01], [512, 1.01]].map(([a, b]) =>
      floorDivide(a!, b!)
    ),
    [199, 9, 126, 506],
  );
});

Deno.test("KA-1: pyramidBudgets gives the known tables", () => {
  const cases: [number, number, number, number, number, number, number][] = [
    // C, T, layers, window, first, last, sum
    [64, 4000, 32, 8, 110, 17, 2032],
    [128, 128, 32, 8, 120, 120, 3840],
    [128, 239, 32, 8, 120, 120, 3840],
    [128, 240, 32, 8, 232, 15, 3952],
    [128, 4000, 32, 8, 234, 17, 4016],
    [512, 4000, 32, 8, 983, 53, 16576],
    [2048, 8000, 32, 8, 3978, 103, 65296],
    [32, 200, 4, 8, 47, 2, 98],
    [128, 4000, 32, 32, 188, 33, 3536],
  ];
  for (const [budget, length, layers, window, first, last, sum] of cases) {
    const base = budget - window;
    const pyramid = {
      base,
      candidates: length - window,
      layers,
      beta: 20,
      exact: false,
    };
    const rows = pyramidBudgets(pyramid, length);
    assertEquals([rows[0], rows.at(-1), rows.reduce((a, b) => a + b)], [
      first,
      last,
      sum,
    ]);
    const exact = pyramidBudgets({ ...pyramid, exact: true }, length);
    assertEquals(exact.reduce((a, b) => a + b), layers * base);
    assert(exact.every((n, i) => n >= 0 && n <= rows[i]!));
  }
});

Deno.test("KA-3: adaptiveBudgets rounds each head's share", () => {
  assertEquals(adaptiveBudgets([2, 4], 3, 0.2, 6), [2, 3]);
  assertEquals(adaptiveBudgets([504, 504], 504, 0.2, 4000), [503, 503]);
  // 575 times 0.78 is 448.5 in double precision, and less in single.
  assertEquals(adaptiveBudgets([575], 223, 0.22, 4000), [497]);
});

const published = new URL("../../../shared/data/heads_score/", import.meta.url);
const files = ["Meta-Llama-3-8B-Instruct", "Mistral-7B-Instruct-v0.2"].map((
  name,
) => fromFileUrl(new URL(`${name}_retrieval_reasoning_heads.json`, published)));
const there = await Deno.stat(files[0]!).then(() => true, () => false);

Deno.test({
  name:
    "KA-2: headBudgets gives the known tables for the published head scores",
  ignore: !there,
  fn() {
    const [llama, mistral] = files.map((path) =>
      parseHeadFile(path, Deno.readTextFileSync(path)).values
    );
    const cases: [
      number[],
      number,
      number,
      number,
      number,
      number,
      number[],
    ][] = [
      [llama!, 128, 131060, 2, 1944, 15 * 32 + 30, [2, 5, 3, 12, 4, 4, 5, 3]],
      [llama!, 512, 524281, 6, 7804, 15 * 32 + 30, [
        6,
        17,
        11,
        45,
        13,
        13,
        17,
        11,
      ]],
      [llama!, 2048, 2097144, 21, 31261, 15 * 32 + 30, [
        23,
        66,
        41,
        176,
        48,
        51,
        65,
        40,
      ]],
      [mistral!, 512, 524288, 6, 8315, 18 * 32, [
        50,
        63,
        45,
        44,
        24,
        16,
        20,
        23,
      ]],
    ];
    for (const [scores, budget, sum, least, most, at, start] of cases) {
      const rows = headBudgets(scores, budget, 1.01);
      assertEquals(rows.length, 1024);
      assertEquals(rows.reduce((a, b) => a + b), sum);
      assertEquals([Math.min(...rows), Math.max(...rows), rows[at]], [
        least,
        most,
        most,
      ]);
      assertEquals(rows.slice(0, 8), start);
    }
    const rows = headBudgets(llama!, 512, 1.01);
    const group = (layer: number) =>
      tableBudgets(rows, {
        layer,
        queryHeads: 32,
        storedHeads: 8,
        candidates: 1e6,
      });
    assertEquals(group(0), [20, 14, 73, 72, 56, 125, 12, 20]);
    assertEquals(group(16), [2468, 31, 1606, 8, 1100, 2184, 2411, 13]);
  },
});

Deno.test("parseHeadFile reads scores in file order, rows as they are, and refuses the rest", () => {
  assertEquals(parseHeadFile("f", '{"0-1":[2,4],"0-0":[1]}\n{"x"'), {
    kind: "scores",
    values: [3, 1],
  });
  assertEquals(parseHeadFile("f", '{"rows":\n[[1,2],[3,4]]}'), {
    kind: "rows",
    values: [1, 2, 3, 4],
  });
  for (
    const text of [
      "",
      "[1]",
      '{"0-0":[]}',
      '{"0-0":[-1]}',
      '{"rows":[[1.5]]}',
      "{}{",
    ]
  ) {
    assertThrows(
      () => parseHeadFile("heads.json", text),
      SyntaxError,
      'head file "heads.json"',
    );
  }
});
