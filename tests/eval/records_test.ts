import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { join } from "@std/path";
import fc from "fast-check";
import { appendLine } from "../../eval/records/_lines.ts";
import {
  canonicalJson,
  claims,
  compactRows,
  comparableRecord,
  contentHash,
  exampleHash,
  expandRows,
  formatShard,
  jsonSchemas,
  parseRecord,
  parseShard,
  readRecords,
  readRunMeta,
  recordKey,
  RecordStore,
  sha256,
} from "../../eval/records/mod.ts";
import type { EvalRecord, Json, RunMeta } from "../../eval/records/mod.ts";

const ZERO = "0".repeat(64);

/** A record about example `i`; `change` overrides fields before the key is made. */
async function makeRecord(
  i: number,
  change: Partial<EvalRecord> = {},
): Promise<EvalRecord> {
  const record: EvalRecord = {
    schema: 1,
    key: ZERO,
    model: { name: "tiny", hash: await sha256("weights") },
    example: { id: `niah/${i}`, hash: await sha256(`example ${i}`) },
    method: { name: "snapkv", options: { budget: 64, pool: "max" } },
    generation: { device: "cpu", maxNewTokens: 16 },
    seed: 7,
    build: { commit: "abc1234", abi: 3 },
    task: { name: "niah_single_1", options: { length: 1024 } },
    promptTokens: 1000 + i,
    tokens: [5, 6, i],
    text: `The code is ${i} – “ok”\n段落`,
    answers: [String(i)],
    metric: { name: "string_match_all", variant: { clean: true } },
    score: i % 2,
    cache: {
      rows: [64, [60, 68]],
      promisedBytes: 4096,
      residentBytes: 4096,
      peakBytes: 9999,
    },
    timing: { prefillMs: 12.5, decodeMs: 3.25 },
    stop: "newline",
    meta: { depth: 50 },
    ...change,
  };
  return { ...record, key: await recordKey(record) };
}

const RUN_META: RunMeta = {
  schema: 1,
  startedAt: "2026-01-02T03:04:05.678Z",
  shard: "1/1",
  commit: "abc1234",
  dirty: false,
  versions: { deno: "2.9.6" },
  hardware: {
    os: "linux",
    arch: "x86_64",
    cpu: "a processor",
    cores: 2,
    memoryBytes: 8e9,
    gpu: null,
    gpuMemoryBytes: null,
  },
  permissions: ["read=./data"],
  options: { budgets: [64, 128] },
  hashes: { model: ZERO },
};

/** Where tests may write. */
const BUILD = fromFileUrl(new URL("../../build", import.meta.url));

/** A temporary folder that goes when its scope ends. */
class TempFolder implements Disposable {
  readonly path: string;
  constructor() {
    Deno.mkdirSync(BUILD, { recursive: true });
    this.path = Deno.makeTempDirSync({ dir: BUILD });
  }
  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

function shardFile(folder: string, name = "1-of-1"): string {
  return join(folder, `records-${name}.jsonl`);
}

async function fill(folder: string, count: number): Promise<EvalRecord[]> {
  const records = await Promise.all(
    Array.from({ length: count }, (_, i) => makeRecord(i)),
  );
  using store = await RecordStore.open(folder);
  await store.append(...records);
  return records;
}

async function readAll(folder: string): Promise<EvalRecord[]> {
  return await Array.fromAsync(readRecords(folder));
}

Deno.test("canonicalJson sorts keys, drops undefined fields and is what JSON.parse reads", () => {
  assertEquals(
    canonicalJson({
      b: [1, -0, 1e21],
      a: { "é": "\n", d: undefined },
      B: null,
    }),
    '{"B":null,"a":{"é":"\\n"},"b":[1,0,1e+21]}',
  );
  fc.assert(
    fc.property(fc.jsonValue({ noUnicodeString: false }), (value) => {
      const text = canonicalJson(value);
      assertEquals(canonicalJson(JSON.parse(text)), text);
    }),
    { numRuns: 300, seed: 1 },
  );
});

Deno.test("canonicalJson refuses what JSON cannot hold and says where", () => {
  assertThrows(
    () => canonicalJson({ a: [1, NaN] }),
    TypeError,
    "$.a[1] is NaN",
  );
  assertThrows(() => canonicalJson({ a: 1n }), TypeError, "$.a is 1");
  assertThrows(() => canonicalJson({ a: new Map() }), TypeError, "$.a is Map");
  assertThrows(
    () => canonicalJson([undefined]),
    TypeError,
    "$[0] is undefined",
  );
});

Deno.test("sha256 gives the published value of the empty text", async () => {
  assertEquals(
    await sha256(""),
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  );
});

Deno.test("contentHash does not depend on the order of keys", async () => {
  assertEquals(
    await contentHash({ a: 1, b: { c: 2, d: 3 } }),
    await contentHash({ b: { d: 3, c: 2 }, a: 1 }),
  );
});

Deno.test("recordKey changes with every part that decides tokens and with nothing else", async () => {
  const base = await makeRecord(1);
  const changes: Partial<EvalRecord>[] = [
    { model: { name: "tiny", hash: ZERO } },
    { example: { id: "niah/1", hash: ZERO } },
    { method: { name: "snapkv", options: { budget: 65, pool: "max" } } },
    { method: { ...base.method, source: ZERO } },
    { method: { ...base.method, files: { headFile: ZERO } } },
    { generation: { device: "cuda", maxNewTokens: 16 } },
    { seed: 8 },
    { build: { commit: "abc1234", abi: 4 } },
  ];
  const keys = await Promise.all(
    changes.map(async (change) => (await makeRecord(1, change)).key),
  );
  assertEquals(new Set([base.key, ...keys]).size, changes.length + 1);
  const same = await makeRecord(1, {
    model: { ...base.model, name: "other" },
    score: 0.25,
  });
  assertEquals(same.key, base.key);
});

Deno.test("exampleHash tells tasks, options and examples apart", async () => {
  const example = {
    id: "0",
    prompt: "p",
    answerPrefix: "",
    answers: ["a"],
    maxNewTokens: 8,
    stopAtNewline: true,
    meta: {},
  };
  const hashes = [
    await exampleHash({ name: "t", options: {} }, example),
    await exampleHash({ name: "u", options: {} }, example),
    await exampleHash({ name: "t", options: { length: 1 } }, example),
    await exampleHash({ name: "t", options: {} }, { ...example, prompt: "q" }),
  ];
  assertEquals(new Set(hashes).size, 4);
});

Deno.test("the published JSON Schemas are those of the code", () => {
  for (const [file, schema] of Object.entries(jsonSchemas())) {
    const url = new URL(`../../eval/records/${file}`, import.meta.url);
    assertEquals(JSON.parse(Deno.readTextFileSync(url)) as Json, schema, file);
  }
});

Deno.test("parseRecord lists what does not fit", async () => {
  const record = await makeRecord(0);
  assertEquals(parseRecord(record), record);
  assertThrows(
    () => parseRecord({ ...record, score: 2, extra: 1 }),
    SyntaxError,
    "extra",
  );
});

Deno.test("comparableRecord leaves out times, the peak and the check sum", async () => {
  const record = await makeRecord(0);
  const later = {
    ...record,
    timing: { prefillMs: 1, decodeMs: 1, batch: 8 },
    cache: { ...record.cache, peakBytes: 1 },
    sum: "0".repeat(16),
  };
  assertEquals(comparableRecord(later), comparableRecord(record));
  assert(
    comparableRecord({ ...record, text: "x" }) !== comparableRecord(record),
  );
});

Deno.test("expandRows undoes compactRows", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 4 }).chain((heads) =>
        fc.array(
          fc.array(fc.nat(3), { minLength: heads, maxLength: heads }),
          { maxLength: 6 },
        ).map((rows) => ({ heads, rows }))
      ),
      ({ heads, rows }) =>
        assertEquals(expandRows(compactRows(rows), heads), rows),
    ),
    { seed: 1 },
  );
  assertEquals(compactRows([[4, 4], [3, 4]]), [4, [3, 4]]);
});

Deno.test("claims gives every example to exactly one shard, evenly", async () => {
  const hashes = await Promise.all(
    Array.from({ length: 400 }, (_, i) => sha256(String(i))),
  );
  for (const count of [1, 2, 3, 7]) {
    const counts = Array.from({ length: count }, (_, i) => {
      const shard = { index: i + 1, count };
      return hashes.filter((hash) => claims(shard, hash)).length;
    });
    assertEquals(counts.reduce((a, b) => a + b), 400);
    assert(Math.min(...counts) > 400 / count / 2, counts.join());
  }
  assertThrows(() => claims({ index: 1, count: 2 }, "xyz"), TypeError, '"xyz"');
});

Deno.test("parseShard counts from 1 and refuses the rest", () => {
  assertEquals(parseShard("2/4"), { index: 2, count: 4 });
  assertEquals(formatShard({ index: 2, count: 4 }), "2/4");
  for (const text of ["0/4", "5/4", "1", "1/0", "a/b", "-1/2", ""]) {
    assertThrows(() => parseShard(text), SyntaxError, `"${text}"`);
  }
});

Deno.test("RecordStore finds finished records again and gives them back unchanged", async () => {
  using temp = new TempFolder();
  const folder = join(temp.path, "new", "results");
  const records = await fill(folder, 5);
  using store = await RecordStore.open(folder);
  assertEquals(store.size, 5);
  for (const { key } of records) assert(store.has(key));
  assert(!store.has(ZERO));
  const read = await readAll(folder);
  assertEquals(read.map(({ sum: _, ...record }) => record), records);
});

Deno.test("RecordStore writes one line per record", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 3);
  const text = Deno.readTextFileSync(shardFile(temp.path));
  assertEquals(text.split("\n").length, 4);
  assert(text.endsWith("}\n"));
});

Deno.test("RecordStore keeps every whole line wherever its writer was killed", async () => {
  using temp = new TempFolder();
  const records = await fill(temp.path, 4);
  const path = shardFile(temp.path);
  const bytes = Deno.readFileSync(path);
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length), async (cut) => {
      Deno.writeFileSync(path, bytes.subarray(0, cut));
      const whole = bytes.subarray(0, cut).filter((byte) =>
        byte === 0x0a
      ).length;
      assertEquals((await readAll(temp.path)).length, whole);
      assertEquals(Deno.statSync(path).size, cut, "reading changes nothing");
      {
        using store = await RecordStore.open(temp.path);
        assertEquals(store.size, whole);
        const missing = records.filter(({ key }) => !store.has(key));
        await store.append(...missing);
      }
      assertEquals(Deno.readFileSync(path), bytes, "resumed as uninterrupted");
    }),
    { numRuns: 60, seed: 1 },
  );
});

Deno.test("RecordStore notices every changed byte and names file and line", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 3);
  const path = shardFile(temp.path);
  const bytes = Deno.readFileSync(path);
  const before = (await readAll(temp.path)).map(comparableRecord);
  await fc.assert(
    fc.asyncProperty(
      fc.nat(bytes.length - 2),
      fc.integer({ min: 1, max: 255 }),
      async (at, flip) => {
        const broken = bytes.slice();
        broken[at] = (broken[at] ?? 0) ^ flip;
        Deno.writeFileSync(path, broken);
        const line = bytes.subarray(0, at).filter((b) => b === 0x0a).length + 1;
        try {
          assertEquals(
            (await readAll(temp.path)).map(comparableRecord),
            before,
          );
        } catch (error) {
          assert(error instanceof SyntaxError, String(error));
          assert(error.message.includes(`${path}:${line}: `), error.message);
          await assertRejects(() => RecordStore.open(temp.path), SyntaxError);
          assertEquals(Deno.readFileSync(path), broken, "left as it was found");
        }
      },
    ),
    { numRuns: 120, seed: 1 },
  );
});

Deno.test("RecordStore says what is wrong with a line", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 1);
  const path = shardFile(temp.path);
  const good = Deno.readTextFileSync(path);
  const cases: [string | Uint8Array, string][] = [
    ["\n" + good, ":1: "],
    [good + "[1, 2\n" + good, ":2: "],
    [good.replace('"seed":7,', "") + good, "seed"],
    [
      good.replace('"seed":7', '"seed":"7"'),
      "expected number, received string",
    ],
    [
      good.replace('"seed":7', '"seed":8').replace(/"sum":"[0-9a-f]+",/, ""),
      "the key does not belong",
    ],
    [good.replace('"seed":7', '"seed":8'), "changed after it was written"],
    [good.replace('"score":0', '"score":1'), "changed after it was written"],
    [new Uint8Array([0xff, 0xfe, 0x0a]), ":1: "],
  ];
  for (const [content, message] of cases) {
    const data = typeof content === "string"
      ? new TextEncoder().encode(content)
      : content;
    Deno.writeFileSync(path, data);
    await assertRejects(
      () => RecordStore.open(temp.path),
      SyntaxError,
      message,
    );
    await assertRejects(() => readAll(temp.path), SyntaxError, path);
  }
});

Deno.test("RecordStore takes a line that another program wrote anew with the same content", async () => {
  using temp = new TempFolder();
  const [record] = await fill(temp.path, 1);
  const path = shardFile(temp.path);
  const { sum, ...rest } = JSON.parse(Deno.readTextFileSync(path));
  Deno.writeTextFileSync(path, JSON.stringify({ sum, ...rest }) + "\n");
  assertEquals((await readAll(temp.path))[0]?.key, record?.key);
});

Deno.test("RecordStore takes a record edited by hand once its check sum is deleted", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 1);
  const path = shardFile(temp.path);
  const edited = Deno.readTextFileSync(path)
    .replace('"score":0', '"score":1').replace(/"sum":"[0-9a-f]+",/, "");
  Deno.writeTextFileSync(path, edited);
  assertEquals((await readAll(temp.path))[0]?.score, 1);
});

Deno.test("RecordStore refuses a folder of another version or without its marker", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 1);
  const marker = join(temp.path, "kvf_results.json");
  Deno.writeTextFileSync(marker, '{"kind":"kvf-results","schema":2}');
  await assertRejects(
    () => RecordStore.open(temp.path),
    RangeError,
    "must have version 1: version is 2",
  );
  await assertRejects(() => readAll(temp.path), RangeError, marker);
  Deno.writeTextFileSync(marker, "{");
  await assertRejects(() => RecordStore.open(temp.path), SyntaxError, marker);
  Deno.removeSync(marker);
  await assertRejects(
    () => RecordStore.open(temp.path),
    SyntaxError,
    "kvf_results.json",
  );
});

Deno.test("RecordStore shares a folder between shards that see each other's finished work", async () => {
  using temp = new TempFolder();
  const records = await Promise.all(
    [0, 1, 2, 3, 4, 5].map((i) => makeRecord(i)),
  );
  using first = await RecordStore.open(temp.path, { shard: parseShard("1/2") });
  using second = await RecordStore.open(temp.path, {
    shard: parseShard("2/2"),
  });
  for (const record of records) {
    const owner = [first, second].filter((s) => s.claims(record.example.hash));
    assertEquals(owner.length, 1);
    await owner[0]?.append(record);
  }
  using third = await RecordStore.open(temp.path, { shard: parseShard("1/3") });
  assertEquals(third.size, 6);
  assertEquals((await readAll(temp.path)).length, 6);
});

Deno.test("RecordStore passes over the torn line of another shard and leaves it there", async () => {
  using temp = new TempFolder();
  using other = await RecordStore.open(temp.path, { shard: parseShard("2/2") });
  await other.append(await makeRecord(0));
  const path = shardFile(temp.path, "2-of-2");
  Deno.writeTextFileSync(path, '{"half', { append: true });
  const size = Deno.statSync(path).size;
  using store = await RecordStore.open(temp.path, { shard: parseShard("1/2") });
  assertEquals(store.size, 1);
  assertEquals(Deno.statSync(path).size, size);
});

Deno.test("RecordStore refuses a second writer of one shard until the first is closed", async () => {
  using temp = new TempFolder();
  {
    using _first = await RecordStore.open(temp.path);
    await assertRejects(
      () => RecordStore.open(temp.path),
      Deno.errors.Busy,
      "shard 1/1",
    );
  }
  using again = await RecordStore.open(temp.path);
  assertEquals(again.size, 0);
});

Deno.test("RecordStore.append refuses wrong, keyless and finished records and writes nothing", async () => {
  using temp = new TempFolder();
  using store = await RecordStore.open(temp.path);
  const record = await makeRecord(0);
  const other = await makeRecord(1);
  await assertRejects(
    () => store.append(other, { ...record, score: NaN }),
    TypeError,
    "score",
  );
  await assertRejects(
    () => store.append(other, { ...record, key: ZERO }),
    TypeError,
    ZERO,
  );
  await assertRejects(
    () => store.append(record, record),
    TypeError,
    record.key,
  );
  assertEquals(Deno.statSync(shardFile(temp.path)).size, 0);
  await store.append(record);
  await assertRejects(() => store.append(record), TypeError, "finished");
  assertEquals(store.size, 1);
});

Deno.test("RecordStore is closed once and refuses to be used afterwards", async () => {
  using temp = new TempFolder();
  const store = await RecordStore.open(temp.path);
  store[Symbol.dispose]();
  store[Symbol.dispose]();
  const record = await makeRecord(0);
  await assertRejects(() => store.append(record), TypeError, "is closed");
});

Deno.test("RecordStore takes appends that run at the same time", async () => {
  using temp = new TempFolder();
  using store = await RecordStore.open(temp.path);
  const records = await Promise.all(
    Array.from({ length: 20 }, (_, i) => makeRecord(i)),
  );
  const twice = [...records, ...records].map((record) => store.append(record));
  const outcomes = await Promise.allSettled(twice);
  assertEquals(
    outcomes.filter(({ status }) => status === "fulfilled").length,
    20,
  );
  assertEquals((await readAll(temp.path)).length, 20);
});

Deno.test("readRecords gives a record of two shards once and refuses a contradiction", async () => {
  using temp = new TempFolder();
  await fill(temp.path, 2);
  const copy = shardFile(temp.path, "1-of-2");
  Deno.copyFileSync(shardFile(temp.path), copy);
  assertEquals((await readAll(temp.path)).length, 2);
  const other = await makeRecord(0, { text: "something else" });
  Deno.writeTextFileSync(copy, canonicalJson(other) + "\n");
  await assertRejects(
    () => readAll(temp.path),
    SyntaxError,
    `${copy}:1 differs from ${shardFile(temp.path)}:1`,
  );
});

Deno.test("readRunMeta gives every start, and a torn one is cut off", async () => {
  using temp = new TempFolder();
  for (const startedAt of [RUN_META.startedAt, "2026-01-03T00:00:00Z"]) {
    using store = await RecordStore.open(temp.path);
    store.appendRunMeta({ ...RUN_META, startedAt });
    assertThrows(
      () => store.appendRunMeta({ ...RUN_META, startedAt: "yesterday" }),
      TypeError,
      "startedAt",
    );
    const path = join(temp.path, "run_meta-1-of-1.jsonl");
    Deno.writeTextFileSync(path, '{"torn', { append: true });
  }
  assertEquals(
    [...readRunMeta(temp.path)].map(({ startedAt }) => startedAt),
    [RUN_META.startedAt, "2026-01-03T00:00:00Z"],
  );
});

Deno.test("appendLine cuts a line that did not fit on the disk off again", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "grapheme", maxLength: 50 }),
      fc.nat(40),
      fc.integer({ min: 1, max: 7 }),
      (text, room, piece) => {
        const bytes: number[] = [...new TextEncoder().encode("before\n")];
        const size = bytes.length;
        const file = {
          writeSync(data: Uint8Array): number {
            const left = room - (bytes.length - size);
            if (left <= 0) throw new Error("No space left on device");
            const taken = data.subarray(0, Math.min(left, piece));
            bytes.push(...taken);
            return taken.length;
          },
          truncateSync(length?: number): void {
            bytes.length = length ?? 0;
          },
        };
        const line = new TextEncoder().encode(text + "\n");
        if (line.length <= room) {
          assertEquals(appendLine(file, size, text), size + line.length);
          assertEquals(bytes.slice(size), [...line]);
        } else {
          assertThrows(() => appendLine(file, size, text), Error, "No space");
          assertEquals(bytes.length, size);
        }
      },
    ),
    { seed: 1 },
  );
});
