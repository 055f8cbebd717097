// deno-lint-ignore-file no-console -- stands in for the terminal
/**
 * Broken files through the whole program: whatever a model folder, a prompt or recorded tensors hold, the outcome is an
 * answer or a message with exit status 1 or 2, never a crash, a stack trace or a hang.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import fc from "fast-check";
import { main } from "../../cli/main.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url));
const LLAMA = `${ROOT}/tests/goldens/models/llama`;
const BUNDLED = `${ROOT}/models/needle-6m`;

/** A folder that is removed at the end, with files copied into it. */
function folder(
  from: string,
  names: string[],
): { path: string } & Disposable {
  const path = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  for (const name of names) {
    Deno.copyFileSync(`${from}/${name}`, `${path}/${name}`);
  }
  return {
    path,
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

/** Runs a command line in this process. */
async function kvf(
  ...args: string[]
): Promise<{ code: number; err: string }> {
  const { log, error } = console;
  const lines: string[] = [];
  console.log = () => {};
  console.error = (...parts: unknown[]) => lines.push(parts.join(" "));
  try {
    return { code: await main(args), err: lines.join("\n") };
  } finally {
    Object.assign(console, { log, error });
  }
}

/** Fails unless the outcome is an answer, or one message without a stack. */
function assertHonest(
  { code, err }: { code: number; err: string },
  what: string,
): void {
  assert(code === 0 || code === 1 || code === 2, `${what}: status ${code}`);
  if (code === 0) return;
  assertStringIncludes(err, "error: ", what);
  assert(!/\n\s+at /.test(err), `${what}: ${err}`);
}

/** A few bytes of a file exchanged, cut out, doubled or put in; positions are shares of the length. */
const change = fc.record({
  kind: fc.constantFrom("exchange", "cut", "double", "insert", "truncate"),
  at: fc.double({ min: 0, max: 1, noNaN: true }),
  bytes: fc.uint8Array({ minLength: 1, maxLength: 12 }),
});

function apply(
  original: Uint8Array,
  { kind, at, bytes }: { kind: string; at: number; bytes: Uint8Array },
  within = original.length,
): Uint8Array<ArrayBuffer> {
  const place = Math.floor(at * Math.min(within, original.length));
  const before = original.subarray(0, place);
  const rest = original.subarray(place);
  const parts = {
    exchange: [before, bytes, rest.subarray(bytes.length)],
    cut: [before, rest.subarray(bytes.length)],
    double: [before, rest.subarray(0, bytes.length), rest],
    insert: [before, bytes, rest],
    truncate: [before],
  }[kind]!;
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const result = new Uint8Array(length);
  let offset = 0;
  for (const part of parts) {
    result.set(part, offset);
    offset += part.length;
  }
  return result;
}

const RUN = ["run", "--max-new-tokens", "1", "--threads", "1", "--json"];

for (
  const { name, source, runs, within, args } of [
    { name: "config.json", source: LLAMA, runs: 60, within: Infinity },
    {
      name: "generation_config.json",
      source: LLAMA,
      runs: 30,
      within: Infinity,
    },
    // The header of the weights is where the meaning is.
    { name: "model.safetensors", source: LLAMA, runs: 60, within: 4000 },
    {
      name: "tokenizer.json",
      source: BUNDLED,
      runs: 40,
      within: Infinity,
      args: ["--prompt", "a needle"],
    },
    {
      name: "tokenizer_config.json",
      source: BUNDLED,
      runs: 25,
      within: Infinity,
      args: ["--prompt", "a needle"],
    },
  ]
) {
  Deno.test(`kvf run answers or refuses whatever ${name} holds`, async () => {
    const bundled = source === BUNDLED;
    using copy = folder(source, [
      "config.json",
      "model.safetensors",
      ...(bundled
        ? ["tokenizer.json", "tokenizer_config.json"]
        : ["generation_config.json"]),
    ]);
    const original = Deno.readFileSync(`${source}/${name}`);
    const call = [
      ...[...RUN, "--model", copy.path],
      ...(args ?? ["--prompt-ids", "1,2,3"]),
    ];
    assertEquals((await kvf(...call)).code, 0);
    await fc.assert(
      fc.asyncProperty(change, async (one) => {
        Deno.writeFileSync(
          `${copy.path}/${name}`,
          apply(original, one, within),
        );
        assertHonest(await kvf(...call), `${one.kind} at ${one.at}`);
      }),
      { numRuns: runs },
    );
  });
}

Deno.test("kvf run answers or refuses whatever a prompt file holds", async () => {
  using copy = folder(LLAMA, []);
  const file = `${copy.path}/prompt.txt`;
  const call = [...RUN, "--model", BUNDLED, "--prompt-file", file];
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }),
        fc.string({ unit: "binary", maxLength: 100 })
          .map((text) => new TextEncoder().encode(text)),
      ),
      async (bytes) => {
        Deno.writeFileSync(file, new Uint8Array(bytes));
        assertHonest(await kvf(...call), `${bytes}`);
      },
    ),
    { numRuns: 60 },
  );
  const cases: [Uint8Array<ArrayBuffer>, string][] = [
    [new Uint8Array(), "prompt"],
    [new Uint8Array([0x61, 0xff, 0xfe]), "UTF-8"],
  ];
  for (const [bytes, expected] of cases) {
    Deno.writeFileSync(file, bytes);
    const { code, err } = await kvf(...call);
    assertEquals(code, 2, err);
    assertStringIncludes(err, expected);
    assertStringIncludes(err, "prompt.txt");
  }
});

Deno.test("kvf apply answers or refuses whatever recorded tensors hold", async () => {
  using copy = folder(LLAMA, []);
  const { writeSafetensors } = await import("../../models/mod.ts");
  const file = `${copy.path}/qkv.safetensors`;
  const numbers = (n: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.7));
  writeSafetensors(file, {
    q: { shape: [4, 60, 16], data: numbers(3840) },
    k: { shape: [2, 60, 16], data: numbers(1920) },
    v: { shape: [2, 60, 16], data: numbers(1920) },
  });
  const original = Deno.readFileSync(file);
  const call = [
    ...["apply", "--method", "snapkv", "--input", file, "--json"],
    ...["--options", '{"budget":40}'],
  ];
  assertEquals((await kvf(...call)).code, 0);
  await fc.assert(
    fc.asyncProperty(change, async (one) => {
      Deno.writeFileSync(file, apply(original, one, 250));
      assertHonest(await kvf(...call), `${one.kind} at ${one.at}`);
    }),
    { numRuns: 80 },
  );
  for (
    const options of ["{", "[]", '{"budget":"x"}', '{"budgets":3}', "null"]
  ) {
    Deno.writeFileSync(file, original);
    const wrong = await kvf(...call.slice(0, -1), options);
    assertEquals(wrong.code, 2, `${options}: ${wrong.err}`);
    assertHonest(wrong, options);
  }
});

Deno.test("kvf refuses impossible numbers, ids and paths", async () => {
  const cases: [string[], string][] = [
    [["--prompt-ids", "1,99999"], "99999"],
    [["--prompt-ids", ""], "prompt-ids"],
    [["--prompt-ids", "1", "--temperature", "-1"], "temperature"],
    [["--prompt-ids", "1", "--top-p", "2"], "top-p"],
    [["--prompt-ids", "1", "--max-new-tokens", "0"], "max-new-tokens"],
    [
      ["--prompt-ids", "1", "--max-new-tokens", "99999999999"],
      "max-new-tokens",
    ],
    [["--prompt-ids", "1", "--threads", "0"], "threads"],
    [["--prompt-ids", "1", "--seed", "1e99"], "seed"],
    [["--prompt-ids", "1", "--prompt", "x"], "exactly one"],
    [["--prompt-file", "/nowhere/p.txt", "--model", BUNDLED], "/nowhere/p.txt"],
    [["--prompt-ids", "1", "--device", "cuda:x"], "cuda:N"],
    [["--prompt-ids", "1", "--method", "snapkv", "--budget", "0"], "budget"],
    [["--prompt-ids", "1", "--method", "snapkv", "--budget", "NaN"], "budget"],
  ];
  for (const [args, expected] of cases) {
    const outcome = await kvf(...RUN, "--model", LLAMA, ...args);
    assert(outcome.code === 1 || outcome.code === 2, args.join(" "));
    assertHonest(outcome, args.join(" "));
    assertStringIncludes(outcome.err, expected);
  }
});
