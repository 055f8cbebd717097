import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  crossConfigurations,
  generate,
  LanguageModel,
} from "../../eval/engine/mod.ts";
import { attentionPicture, renderSvg } from "../../eval/plots/mod.ts";
import { encodePng } from "../../eval/plots/_png.ts";
import { pageHtml, pageViewOf } from "../../eval/report/mod.ts";
import {
  captureView,
  codeProbability,
  decodeProbability,
  packView,
  snapshotSummary,
  strideOf,
  unpackView,
  type View,
} from "../../eval/view/mod.ts";
import { fullkv, snapkv, streamingllm } from "../../methods/mod.ts";

const TEXT =
  "The river is calm. The magic number is 4711. Wind moves the trees and the grass. What is the magic number? It is";

/** Looks at a short text with three methods. */
async function look(
  options: Partial<Parameters<typeof captureView>[3]> = {},
): Promise<{ view: View; prompt: number[]; rows: number[][][] }> {
  using model = await LanguageModel.load("models/needle-6m", { threads: 1 });
  const prompt = model.folder.tokenizer!.encodePrompt(TEXT);
  const configurations = [
    ...crossConfigurations([fullkv, streamingllm], [16], {}, "kv_head"),
    ...crossConfigurations(
      [snapkv],
      [16],
      { observationWindow: 8 },
      "query_head",
    ),
  ];
  const view = await captureView(model, prompt, configurations, {
    title: "Test",
    modelName: "needle-6m",
    highlights: ["magic number is 4711"],
    maxNewTokens: 4,
    ...options,
  });
  const generations = await generate(model, prompt, configurations, {
    maxNewTokens: 4,
  });
  return { view, prompt, rows: generations.map(({ cache }) => cache.rows) };
}

/** Positions of one head of a snapshot. */
function positions(
  view: View,
  { configuration, snapshot, layer, head }: {
    configuration: number;
    snapshot: number;
    layer: number;
    head: number;
  },
): number[] {
  const { heads, snapshots } = view.configurations[configuration]!;
  const stride = strideOf(view);
  const from = (layer * heads + head) * stride;
  const { kept } = snapshots[snapshot]!;
  return Array.from({ length: 8 * stride }, (_, i) => i)
    .filter((i) => kept[from + (i >> 3)]! >> (i & 7) & 1);
}

Deno.test("captureView() notes what each cache holds after prefill and after each token", async () => {
  const { view, prompt, rows } = await look();
  const n = prompt.length;
  assertEquals(view.tokens.length, n);
  assertEquals(view.tokens.slice(1).join("").trim(), TEXT);
  assertEquals(view.configurations.map(({ name }) => name), [
    "FullKV",
    "StreamingLLM 16",
    "SnapKV 16",
  ]);
  const all = Array.from({ length: n }, (_, i) => i);
  const place = { layer: 3, head: 2 };
  const full = (snapshot: number) =>
    positions(view, { configuration: 0, snapshot, ...place });
  assertEquals(full(0), all);
  // The first new token comes from the prompt's own logits; it is run with the second.
  assertEquals(full(1), all);
  assertEquals(full(2), [...all, n]);
  assertEquals(
    positions(view, { configuration: 1, snapshot: 0, ...place }),
    [...all.slice(0, 4), ...all.slice(n - 12)],
  );
  for (const [c, one] of view.configurations.entries()) {
    assertEquals(one.heads, c === 2 ? 8 : 4);
    assertEquals(one.snapshots.map(({ generated }) => generated), [
      0,
      1,
      2,
      3,
      4,
    ]);
    for (let layer = 0; layer < 6; layer++) {
      for (let head = 0; head < one.heads; head++) {
        const held = positions(view, {
          configuration: c,
          snapshot: 0,
          layer,
          head,
        });
        assertEquals(held.length, rows[c]![layer]![head]);
      }
    }
  }
});

Deno.test("captureView() marks the tokens of a text, and refuses one that is not there", async () => {
  const { view } = await look();
  const [[first, end]] = view.highlights as [[number, number]];
  const marked = view.tokens.slice(first, end).join("");
  assert(marked.includes("magic number is 4711"), marked);
  assert(marked.length < "magic number is 4711".length + 8, marked);
  const [whole, sinks] = view.configurations.map((one) =>
    snapshotSummary(view, one)
  );
  assertEquals(whole!.markedShare, 1);
  assertEquals([sinks!.rowsPerHead, sinks!.markedShare], [16, 0]);
  for (const { snapshots } of view.configurations) {
    for (const { bytes, ownedBytes } of snapshots) {
      assertEquals(bytes.reduce((sum, n) => sum + n, 0), ownedBytes);
    }
  }
  await assertRejects(
    () => look({ highlights: ["nowhere"] }),
    RangeError,
    'hold it: "nowhere"',
  );
});

Deno.test("captureView() maps attention whose rows add up to one", async () => {
  const { view } = await look({ attentionLayers: [5, 0], blocks: 8 });
  const { layers, block, blocks, maps } = view.attention!;
  assertEquals(layers, [0, 5]);
  assertEquals(blocks, Math.ceil(view.tokens.length / block));
  assert(blocks <= 8);
  assertEquals(maps.length, 2 * 8 * blocks * blocks);
  for (let at = 0; at < maps.length; at += blocks) {
    const sum = maps.subarray(at, at + blocks)
      .reduce((sum, code) => sum + decodeProbability(code), 0);
    assert(Math.abs(sum - 1) < 0.03, `row ${at / blocks} adds up to ${sum}`);
  }
  const n = view.tokens.length;
  for (let row = 0; row < view.scores.length; row += n) {
    const sum = view.scores.subarray(row, row + n)
      .reduce((sum, code) => sum + decodeProbability(code), 0);
    assert(Math.abs(sum - 1) < 0.03, `scores add up to ${sum}`);
  }
  await assertRejects(
    () => look({ attentionLayers: [6] }),
    RangeError,
    "below 6: 6",
  );
});

Deno.test("codeProbability() keeps probabilities within 3 percent", () => {
  for (let p = 1; p > 1e-6; p *= 0.83) {
    const back = decodeProbability(codeProbability(p));
    assert(Math.abs(back / p - 1) < 0.03, `${p} became ${back}`);
  }
  assertEquals(codeProbability(0), 0);
  assertEquals(codeProbability(NaN), 0);
  assertEquals(codeProbability(1e-30), 1);
  assertEquals(codeProbability(1.001), 255);
});

Deno.test("packView() and unpackView() give the same view back", async () => {
  const { view } = await look({ attentionLayers: [2] });
  const packed = await packView(view);
  assertEquals(await unpackView(packed), view);
  await assertRejects(() => unpackView("{}"), SyntaxError, "begins with");
  await assertRejects(
    () => unpackView(packed.replace('"kvfView":1', '"kvfView":2')),
    RangeError,
    "it is 2",
  );
});

Deno.test("pageHtml() holds a view, asks for nothing and lets no text become markup", async () => {
  const { view } = await look();
  const tokens = view.tokens.with(3, "</script><script>alert(1)</script>");
  const packed = await packView({ ...view, title: "<b>", tokens });
  const page = pageHtml({ title: "A & B", views: [await pageViewOf(packed)] });
  assert(page.includes("<title>A &amp; B</title>"));
  assert(page.includes("<h2>&lt;b&gt;</h2>"));
  assert(!page.includes("alert(1)</script>"));
  assertEquals(page.match(/<script\b[^>]*\bsrc=|<link\b|@import|url\(/g), null);
  assert(page.includes("default-src 'none'"));
  // Types, imports and exports are gone from the program.
  const program = page.slice(page.indexOf('<script type="module">') + 22);
  assertEquals(program.match(/^(import|export)\b.*$/gm), null);
});

Deno.test("encodePng() writes the pixels between valid chunks", async () => {
  const pixels = Uint8Array.from({ length: 2 * 3 * 4 }, (_, i) => i * 10);
  const png = await encodePng(pixels, 2);
  assertEquals([...png.subarray(1, 4)], [0x50, 0x4e, 0x47]);
  // The end chunk has no data, so its check sum is known.
  assertEquals(png.subarray(-8).toHex(), "49454e44ae426082");
  const view = new DataView(png.buffer);
  assertEquals([view.getUint32(16), view.getUint32(20)], [2, 3]);
  const size = view.getUint32(33);
  const rows = new Uint8Array(
    await new Response(
      new Blob([png.slice(41, 41 + size)]).stream()
        .pipeThrough(new DecompressionStream("deflate")),
    ).arrayBuffer(),
  );
  assertEquals([...rows.subarray(0, 9)], [0, ...pixels.subarray(0, 8)]);
});

Deno.test("attentionPicture() draws a panel for each map and refuses others", async () => {
  const values = [1, 0, 0.5, 0.5];
  const plot = await attentionPicture({
    title: "Layer 0",
    tokens: 20,
    blocks: 2,
    panels: [{ title: "head 0", values }, { title: "head 1", values }],
  });
  const svg = await renderSvg(plot);
  assertEquals(svg.match(/<image/g)?.length, 2);
  for (const text of ["Layer 0", "head 0", "head 1", "Key (tokens)", "100 %"]) {
    assert(svg.includes(`>${text}<`), text);
  }
  await assertRejects(
    () =>
      attentionPicture({
        title: "",
        tokens: 4,
        blocks: 2,
        panels: [{ title: "x", values: [1] }],
      }),
    RangeError,
    '"x" holds 1',
  );
});
