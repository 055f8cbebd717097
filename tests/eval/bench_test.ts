/** The numbers of kvf bench: what they are made of. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { benchConfigurations, spread } from "../../eval/bench.ts";
import { crossConfigurations, LanguageModel } from "../../eval/engine/mod.ts";
import { METHODS } from "../../methods/mod.ts";

const MODEL = fromFileUrl(new URL("../goldens/models/llama", import.meta.url));

Deno.test("spread has the middle of odd and even counts and both ends", () => {
  assertEquals(spread([3, 1, 2]), { median: 2, low: 1, high: 3 });
  assertEquals(spread([4, 1, 2, 10]), { median: 3, low: 1, high: 10 });
});

Deno.test("benchConfigurations measures every configuration at every length", async () => {
  using model = await LanguageModel.load(MODEL);
  const configurations = crossConfigurations(
    [METHODS.get("fullkv")!, METHODS.get("snapkv")!],
    [64],
    { observationWindow: 4 },
    "kv_head",
  );
  const calls: [number, number][] = [];
  const rows = await benchConfigurations(model, configurations, {
    lengths: [96, 200],
    batch: 2,
    newTokens: 4,
    repeats: 3,
    readBandwidth: 1e10,
    onProgress: (done, total) => calls.push([done, total]),
  });
  assertEquals(
    rows.map((row) => [row.configuration.method.name, row.promptTokens]),
    [["fullkv", 96], ["snapkv", 96], ["fullkv", 200], ["snapkv", 200]],
  );
  assertEquals(calls.length, 16);
  assertEquals(calls.at(-1), [15, 16]);
  for (const row of rows) {
    const { firstTokenMs, prefillMs, decodeMsPerStep } = row;
    assert(firstTokenMs.low <= firstTokenMs.median);
    assert(firstTokenMs.median <= firstTokenMs.high);
    assert(firstTokenMs.median >= prefillMs.low);
    assertEquals(row.promisedBytes, row.residentBytes);
    assert(row.peakBytes >= row.residentBytes);
    assertAlmostEquals(
      row.decodeTokensPerSecond,
      2e3 / decodeMsPerStep.median,
      1e-6,
    );
    assertAlmostEquals(
      row.bandwidthShare,
      (model.native.stepBytes + 2 * row.residentBytes) /
        (decodeMsPerStep.median / 1e3) / 1e10,
      1e-9,
    );
  }
  assert(rows[3]!.residentBytes < rows[2]!.residentBytes / 2);
});
