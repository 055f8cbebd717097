/** Sparse prefill in a model: patterns that keep everything change nothing, files are read and written, a search finds. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { generate, LanguageModel } from "../../eval/engine/mod.ts";
import { patternFile, searchPatterns } from "../../eval/search_patterns.ts";
import { METHODS, resolveOptions } from "../../methods/mod.ts";
import { parsePatternFile } from "../../methods/parts/pattern_file.ts";
import { MODEL_BUILD } from "../ffi/tiny.ts";

const MODEL = fromFileUrl(new URL("../goldens/models/llama", import.meta.url));
const prompt = Array.from({ length: 300 }, (_, i) => (i * 37 + i * i) % 250);
const SHAPE = { layers: 3, queryHeads: 4 };

async function logits(
  model: LanguageModel,
  name: string,
  given: Record<string, unknown>,
): Promise<Float32Array> {
  const method = METHODS.get(name)!;
  const options = resolveOptions(method, given);
  const [generation] = await generate(model, prompt, [
    { method, options, granularity: "kv_head" },
  ], { maxNewTokens: 4, logits: true });
  return generation!.logits!;
}

function distance(a: Float32Array, b: Float32Array): number {
  return Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));
}

Deno.test("minference with sizes as long as the prompt gives the logits of full attention, bit for bit", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const full = await logits(model, "fullkv", {});
  assertEquals(await logits(model, "minference", {}), full);
  for (const pattern of ["stream_llm", "block_sparse"]) {
    const given = { pattern, firstSize: 0, secondSize: 300 };
    assert(distance(await logits(model, "minference", given), full) < 1e-4);
  }
});

Deno.test("minference with small sizes computes something else", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const full = await logits(model, "fullkv", {});
  const few = { pattern: "stream_llm", firstSize: 4, secondSize: 16 };
  assert(distance(await logits(model, "minference", few), full) > 1e-3);
});

Deno.test("searchPatterns keeps what was asked for with as few pairs as it can", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const tight = await searchPatterns(model, [prompt], { recall: 0.99 });
  const loose = await searchPatterns(model, [prompt], { recall: 0.3 });
  const all = (found: typeof tight) => found.flat();
  assertEquals([tight.length, tight[0]!.length], [3, 4]);
  const mean = (found: typeof tight) =>
    all(found).reduce((sum, { pairs }) => sum + pairs / 12, 0);
  assert(all(loose).every(({ kept }) => kept >= 0.3));
  assert(mean(loose) < mean(tight));
  assertEquals(model.cache.ledger().residentBytes, 0);
});

Deno.test({
  name:
    "minference reads a pattern file; more of the attention, nearer to all of it",
  // The permission sets of the tests on a device have nothing to write.
  ignore: Deno.permissions.querySync({ name: "write", path: "build" }).state !==
    "granted",
  fn: patternFiles,
});

async function patternFiles(): Promise<void> {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const tight = await searchPatterns(model, [prompt], { recall: 0.99 });
  const loose = await searchPatterns(model, [prompt], { recall: 0.3 });
  const path = Deno.makeTempFileSync({ dir: "build", suffix: ".json" });
  Deno.writeTextFileSync(path, patternFile(tight));
  const full = await logits(model, "fullkv", {});
  const sparse = await logits(model, "minference", { patternFile: path });
  Deno.writeTextFileSync(path, patternFile(loose));
  const sparser = await logits(model, "minference", { patternFile: path });
  assert(distance(sparse, full) < distance(sparser, full));
  Deno.removeSync(path);
}

Deno.test("parsePatternFile fills in missing heads and refuses what is no pattern file", () => {
  const standard = { kind: "all" } as const;
  const text = JSON.stringify([
    { 1: ["vertical_and_slash", 10, 1000, 0.9] },
    { 0: ["stream_llm", 4, 128, 1], 3: ["block_sparse", 7, 0, 1] },
    {},
  ]);
  assertEquals(parsePatternFile("f", text, SHAPE, standard), [
    [
      standard,
      { kind: "lines", columns: 30, distances: 1000 },
      standard,
      standard,
    ],
    [{ kind: "ends", first: 4, recent: 128 }, standard, standard, {
      kind: "blocks",
      blocks: 7,
    }],
    [standard, standard, standard, standard],
  ]);
  const wrong: [string, string][] = [
    ["", "must be JSON"],
    ["{}", "must be a list"],
    ["[{},{}]", "must have 3 layers: it has 2"],
    ['[{"9":["stream_llm",4,8,1]},{},{}]', "it names head 9"],
    ['[{"0":["dense",4,8,1]},{},{}]', "0.0.0"],
    ['[{"0":["stream_llm",-4,8,1]},{},{}]', "0.0.1"],
  ];
  for (const [text, message] of wrong) {
    assertThrows(
      () => parsePatternFile("p.json", text, SHAPE, standard),
      Error,
      message,
    );
  }
});
