import { assert, assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { headScores } from "../../eval/head_scores.ts";
import { LanguageModel } from "../../eval/engine/mod.ts";
import { headkv, resolveOptions } from "../../methods/mod.ts";
import { temporaryFolder } from "../models/_fixtures.ts";

const BUNDLED = fromFileUrl(new URL("../../models/needle-6m", import.meta.url));

Deno.test("heads are scored by their attention on the needle, and headkv takes the file", async () => {
  using model = await LanguageModel.load(BUNDLED);
  const options = { lengths: [256], depths: 2, seed: 5 };
  const scores = await headScores(model, options);
  const { layers, queryHeads } = model.shape;
  assertEquals(Object.keys(scores).length, layers * queryHeads);
  assertEquals(Object.keys(scores).slice(0, 2), ["0-0", "0-1"]);
  for (const values of Object.values(scores)) {
    assertEquals(values.length, 2);
    assert(values.every((x) => x >= 0 && x < 1.001));
  }
  // A model that finds needles has a head that looks at nothing else, and most heads do not.
  const means = Object.values(scores).map(([a, b]) => (a! + b!) / 2);
  assert(Math.max(...means) > 0.9, `best ${Math.max(...means)}`);
  assert(means.filter((x) => x < 0.5).length > means.length / 2);
  assertEquals(await headScores(model, options), scores);

  using folder = temporaryFolder();
  const file = join(folder.path, "heads.json");
  Deno.writeTextFileSync(file, JSON.stringify(scores));
  const policy = headkv.create(
    resolveOptions(headkv, { budget: 64, headFile: file }),
    model.shape,
  );
  assert(policy.maxRows !== undefined);
});
