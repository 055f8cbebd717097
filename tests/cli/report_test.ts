/** `kvf view` and `kvf report` through the launcher: from a prompt and from records to files. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { unpackView } from "../../eval/view/mod.ts";
import { sampleFolder, writeRecords } from "../eval/sample_records.ts";
import { kvf, ROOT } from "./_kvf.ts";

/** Runs `body` with a fresh folder below build/. */
async function inFolder(
  body: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  try {
    await body(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("kvf view keeps a view in a results folder, and kvf report shows it beside the tables", async () => {
  await inFolder(async (folder) => {
    await writeRecords(folder, sampleFolder());
    const view = await kvf(
      ...["view", "--model", "models/needle-6m", "--needle", "256"],
      ...["--method", "fullkv,streamingllm", "--budget", "32"],
      ...["--max-new-tokens", "2", "--attention", "1", "--images", "--json"],
      ...["--out", `${folder}/look/first.html`, "--into", folder],
    );
    assertEquals(view.code, 0, view.err);
    const told = JSON.parse(view.out);
    assertEquals(
      told.configurations.map((
        one: { name: string; rowsPerHead: number; markedShare: number },
      ) => [one.name, one.markedShare]),
      [["FullKV", 1], ["StreamingLLM 32", 0]],
    );
    assertEquals(told.configurations[1].rowsPerHead, 32);
    assertEquals(
      told.files.map((file: string) => file.replace(`${folder}/`, "")),
      [
        "look/first.html",
        "first.view.json",
        "look/first_attention_1.svg",
        "look/first_attention_1.png",
      ],
    );
    for (const file of told.files) assert(Deno.statSync(file).size > 1000);
    const packed = Deno.readTextFileSync(`${folder}/first.view.json`);
    const { tokens, title } = await unpackView(packed);

    const report = await kvf(
      ...["report", folder, "--html", "--min-effect", "5", "--json"],
    );
    assertEquals(report.code, 0, report.err);
    const { sections, files } = JSON.parse(report.out);
    assertEquals(sections.length, 1);
    assertEquals(
      sections[0].configurations.map((one: { name: string }) => one.name),
      ["fullkv", "snapkv 16", "snapkv 32"],
    );
    assertEquals(sections[0].configurations[2].examplesNeeded, 159);
    assert(files.includes(`${folder}/report/report.csv`), files.join(" "));
    const page = Deno.readTextFileSync(`${folder}/report/report.html`);
    assertStringIncludes(page, `<h2>${title}</h2>`);
    assertStringIncludes(page, `${tokens.length} prompt tokens`);
    assertStringIncludes(
      Deno.readTextFileSync(`${folder}/report/report.md`),
      "Examples per data set to see 5",
    );
  });
});

Deno.test("kvf report fails for a missing record unless told to leave it out", async () => {
  await inFolder(async (folder) => {
    await writeRecords(folder, sampleFolder().slice(1));
    const failed = await kvf("report", folder);
    assertEquals([failed.code, failed.out], [2, ""]);
    assertStringIncludes(failed.err, '"one-0" of one has none of snapkv 32');
    const { code, err } = await kvf("report", folder, "--partial", "--json");
    assertEquals(code, 0, err);
    assertStringIncludes(
      Deno.readTextFileSync(`${folder}/report/report.md`),
      "1 examples are left out",
    );
  });
});

Deno.test("kvf view refuses a needle together with a prompt, and layers that are not there", async () => {
  const look = ["view", "--model", "models/needle-6m", "--method", "fullkv"];
  const out = ["--out", "build/never"];
  const both = await kvf(...look, ...out, "--needle", "256", "--prompt", "x");
  assertEquals(both.code, 2);
  assertStringIncludes(both.err, "Cannot look at a needle as --prompt");
  const layer = await kvf(
    ...[...look, ...out, "--prompt", "some words", "--attention", "9"],
  );
  assertEquals(layer.code, 2);
  assertStringIncludes(layer.err, "layers must be below 6: 9");
});
