/** Records done again: the same tokens, or what differs. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { canonicalJson, readRecords } from "../../eval/records/mod.ts";
import { kvf, ROOT } from "./_kvf.ts";

const METHOD = (last: string): string =>
  `import { defineMethod, integer } from "${ROOT}/methods/mod.ts";
export default defineMethod<{ budget: number }>({
  name: "newest", title: "Newest", summary: "the newest rows", kind: "evict", acts: "after prefill",
  granularities: ["kv_head"], differs: "nothing known", options: { budget: integer("Rows kept", { min: 1 }) },
  create: ({ budget }) => ({ afterPrefill: (layer) => layer.retain(null, { last: ${last} }) }),
});
`;

Deno.test("kvf replay gives the same tokens, with the user's files too, and says what differs", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const out = `${folder}/out`;
  Deno.mkdirSync(`${folder}/texts`);
  const text = "The sea was calm that day. Nobody spoke of it again. ";
  Deno.writeTextFileSync(`${folder}/texts/a.txt`, text.repeat(60));
  Deno.writeTextFileSync(`${folder}/newest.ts`, METHOD("budget"));
  const heads = (best: number) =>
    JSON.stringify(Object.fromEntries(
      Array.from({ length: 48 }, (_, i) => [
        `${Math.floor(i / 8)}-${i % 8}`,
        [i % 8 === best ? 1 : 0.1],
      ]),
    ));
  Deno.writeTextFileSync(`${folder}/heads.json`, heads(0));
  const needle = (lengths: string) =>
    kvf(
      ...["eval", "needle", "--model", "models/needle-6m", "--quiet"],
      ...["--haystack", `${folder}/texts`, "--lengths", lengths],
      ...["--depths", "2", "--method", `fullkv,headkv,${folder}/newest.ts`],
      ...["--head-file", `${folder}/heads.json`],
      ...["--budget", "48", "--out", out],
    );
  // Two starts: the examples of a record may be those of either.
  for (const lengths of ["256", "384"]) {
    const { code, err } = await needle(lengths);
    assertEquals(code, 0, err);
  }
  const records = await Array.fromAsync(readRecords(out));
  assertEquals(records.length, 12);
  const all = await kvf("replay", out, "--limit", "12", "--json");
  assertEquals(all.code, 0, all.err);
  const { replayed, same, records: replays } = JSON.parse(all.out);
  assertEquals([replayed, same], [12, 12]);
  for (const { differences } of replays) assertEquals(differences, []);

  // A changed method of the user's.
  const own = records.find(({ method }) => method.name === "newest")!;
  Deno.writeTextFileSync(`${folder}/newest.ts`, METHOD("budget - 8"));
  const changed = await kvf("replay", out, own.key.slice(0, 16));
  assertStringIncludes(changed.out, "method source: was");
  Deno.writeTextFileSync(`${folder}/newest.ts`, METHOD("budget"));

  // A changed file that an option names.
  const byHead = records.find(({ method }) => method.name === "headkv")!;
  Deno.writeTextFileSync(`${folder}/heads.json`, heads(3));
  const reheaded = await kvf("replay", out, byHead.key.slice(0, 16));
  assertStringIncludes(reheaded.out, "method files: was");
  Deno.writeTextFileSync(`${folder}/heads.json`, heads(0));

  // A record that holds another token than the model gives.
  const path = `${out}/records-1-of-1.jsonl`;
  const good = Deno.readTextFileSync(path);
  const one = records.find(({ tokens }) => tokens.length > 1)!;
  const { sum: _, ...rest } = one;
  const tokens = one.tokens.with(1, one.tokens[1]! + 1);
  Deno.writeTextFileSync(
    path,
    good.split("\n").map((line) =>
      line.includes(one.key) ? canonicalJson({ ...rest, tokens }) : line
    ).join("\n"),
  );
  const differs = await kvf("replay", out, one.key);
  assertEquals(differs.code, 1, differs.err);
  assertStringIncludes(differs.out, "differs from token 1 on");
  Deno.writeTextFileSync(path, good);

  // Another haystack, another model, no such record.
  Deno.writeTextFileSync(`${folder}/texts/a.txt`, text.repeat(30) + "Calm.");
  const other = await kvf("replay", out, one.key);
  assertStringIncludes(other.out, "example: was");
  const wrong = await kvf("replay", out, "0123456789abcdef0");
  assertEquals(wrong.code, 2);
  assertStringIncludes(wrong.err, "there is none");
  Deno.removeSync(folder, { recursive: true });
});
