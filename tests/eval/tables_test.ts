import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  formatBytes,
  formatNumber,
  toCsv,
  toMarkdown,
  toTerminal,
} from "../../eval/tables/mod.ts";
import type { Table } from "../../eval/tables/mod.ts";

interface Row {
  method: string;
  score: number | null;
  bytes: number;
  noise: boolean;
}

const TABLE: Table<Row> = {
  columns: [
    { title: "Method", cell: ({ method }) => method },
    {
      title: "Score",
      digits: 1,
      cell: ({ score, noise }) =>
        score === null
          ? null
          : { value: score, low: score - 1, high: score + 1, noise },
    },
    { title: "Cache", cell: ({ bytes }) => bytes, format: formatBytes },
  ],
  rows: [
    { method: "FullKV", score: 98.25, bytes: 1 << 22, noise: false },
    { method: 'a|b,"c"', score: 97, bytes: 1000, noise: true },
    { method: "方法", score: null, bytes: 0, noise: false },
  ],
  notes: ["≈: may be chance"],
};

Deno.test("toMarkdown aligns numbers, shows intervals and marks noise", () => {
  assertEquals(
    toMarkdown(TABLE),
    [
      "| Method | Score | Cache |",
      "| --- | ---: | ---: |",
      "| FullKV | 98.3 [97.3, 99.3] | 4.00 MiB |",
      '| a\\|b,"c" | 97.0 [96.0, 98.0] ≈ | 0.98 KiB |',
      "| 方法 | – | 0 B |",
      "",
      "≈: may be chance",
      "",
    ].join("\n"),
  );
});

Deno.test("toCsv keeps full precision, quotes and splits intervals", () => {
  assertEquals(
    toCsv(TABLE),
    [
      "Method,Score,Score low,Score high,Score noise,Cache",
      "FullKV,98.25,97.25,99.25,false,4194304",
      '"a|b,""c""",97,96,98,true,1000',
      "方法,,,,,0",
      "",
    ].join("\r\n"),
  );
});

Deno.test("toCsv can be read back whatever the texts are", () => {
  const parse = (csv: string): string[] =>
    [...csv.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))\r\n/g)]
      .map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain ?? "");
  fc.assert(
    fc.property(fc.array(fc.string({ unit: "binary" })), (rows) => {
      const columns = [{ title: "t", cell: (text: string) => text }];
      assertEquals(parse(toCsv({ columns, rows })), ["t", ...rows]);
    }),
    { seed: 1 },
  );
});

Deno.test("toTerminal draws boxes of one width and no colour unless asked", () => {
  const plain = toTerminal(TABLE, { colour: false });
  assert(!plain.includes("\x1b"));
  assertEquals(plain.split("\n")[0]?.startsWith("┌"), true);
  assert(plain.includes('│ a|b,"c" │ 97.0 [96.0, 98.0] ≈ │ 0.98 KiB │'), plain);
  assert(plain.includes("│ 方法    │"), "wide characters count twice");
  assert(plain.endsWith("≈: may be chance\n"));
  const coloured = toTerminal(TABLE, { colour: true });
  assert(coloured.includes("\x1b[1mMethod\x1b[0m"));
  assert(coloured.includes("\x1b[2m97.0 [96.0, 98.0] ≈\x1b[0m"));
  // deno-lint-ignore no-control-regex -- colour codes begin with the escape character
  assertEquals(coloured.replace(/\x1b\[\d+m/g, ""), plain);
});

Deno.test("formatNumber shows dashes for what is missing and no negative zero", () => {
  assertEquals(
    [1.005, -0.001, 0, null, NaN, Infinity].map((x) => formatNumber(x)),
    ["1.00", "0.00", "0.00", "–", "–", "–"],
  );
  assertEquals(formatNumber(-0.4, 0), "0");
});

Deno.test("formatBytes keeps three digits in every unit", () => {
  assertEquals(
    [0, 999, 1000, 1024, 10240, 1e6, 123456789, 5e12, null].map(formatBytes),
    [
      "0 B",
      "999 B",
      "0.98 KiB",
      "1.00 KiB",
      "10.0 KiB",
      "977 KiB",
      "118 MiB",
      "4.55 TiB",
      "–",
    ],
  );
});
