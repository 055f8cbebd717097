/** Records of scripts are done again as those of the command line are. */
import { assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { LanguageModel } from "../../eval/engine/mod.ts";
import { evaluate } from "../../eval/evaluate.ts";
import { readRunMeta } from "../../eval/records/mod.ts";
import { originsOf, replayRecord } from "../../eval/replay.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");

Deno.test("replayRecord does the records of evaluate() again and names what changed", async () => {
  const out = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  using model = await LanguageModel.load(`${ROOT}/models/needle-6m`);
  const { records } = await evaluate({
    model,
    tasks: [{ name: "needle", options: { lengths: [256], depths: 2 } }],
    methods: ["snapkv"],
    budgets: [40],
    out,
  });
  assertEquals(records.length, 4);
  const starts = [...readRunMeta(out)];
  for (const record of records) {
    const origins = originsOf(record, starts);
    const { commit } = record.build;
    const again = await replayRecord(model, record, origins, commit);
    assertEquals(again.tokens, record.tokens);
    assertEquals([again.same, again.differences], [true, []]);
    const later = await replayRecord(model, record, origins, "later");
    assertEquals(later.differences, [
      { what: "commit", record: commit, now: "later" },
    ]);
    const short = { ...record, tokens: record.tokens.slice(0, 1) };
    const longer = await replayRecord(model, short, origins, commit);
    assertEquals([longer.same, longer.firstDifference], [false, 1]);
  }
  const [record] = records;
  for (
    const changed of [
      { ...record!, seed: 7 },
      { ...record!, task: { ...record!.task, options: {} } },
      { ...record!, method: { ...record!.method, name: "h2o" } },
      { ...record!, model: { ...record!.model, hash: "0".repeat(64) } },
    ]
  ) {
    assertThrows(() => originsOf(changed, starts), RangeError, "run_meta");
  }
  // The example is not among those of the start any more.
  const gone = await replayRecord(
    model,
    { ...record!, example: { ...record!.example, id: "gone" } },
    originsOf(record!, starts),
    record!.build.commit,
  );
  assertEquals([gone.same, gone.tokens], [false, undefined]);
  Deno.removeSync(out, { recursive: true });
});
