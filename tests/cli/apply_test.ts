// deno-lint-ignore-file no-console -- what the command line prints is caught
/** `kvf apply` on recorded tensors: the reference's cases, every number format, and what it refuses. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { main } from "../../cli/main.ts";
import { METHODS } from "../../methods/mod.ts";
import { readTensor, writeSafetensors } from "../../models/mod.ts";
import {
  cases,
  type Golden,
  GOLDEN_TENSORS,
  ourOptions,
  storedRows,
} from "../methods/goldens.ts";
import { wrong } from "../methods/oracle/choice.ts";
import { choicesOf } from "../methods/oracle/expect.ts";
import { taskOf } from "../methods/oracle/golden.ts";
import { kvf, ROOT } from "./_kvf.ts";

/** Runs a command line in this process. */
async function run(
  ...args: string[]
): Promise<{ code: number; out: string; err: string }> {
  const { log, error } = console;
  const [out, err]: [string[], string[]] = [[], []];
  console.log = (...text) => out.push(text.join(" "));
  console.error = (...text) => err.push(text.join(" "));
  try {
    const code = await main(args);
    return { code, out: out.join("\n"), err: err.join("\n") };
  } finally {
    console.log = log;
    console.error = error;
  }
}

/** A folder that is gone after the test. */
function folder(): { path: string } & Disposable {
  const path = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  return {
    path,
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

/** The command line of a case. */
function callOf(golden: Golden): string[] {
  const { method, options, input } = golden;
  const names = method === "minicache"
    ? [
      ...["q", "k", "v"].flatMap((name) => [`--${name}`, "minicache.current"]),
      ...["--lower-k", "minicache.previous"],
      ...["--lower-v", "minicache.previous"],
      ...["--layer", "1", "--layers", "2"],
    ]
    : [
      ...["q", "k", "v"].flatMap((name) => [`--${name}`, `${input}.${name}`]),
      ...["--layer", `${options.layer_idx ?? 0}`],
      ...["--layers", `${options.num_hidden_layers ?? 1}`],
    ];
  return [
    ...["apply", "--json", "--method", method, "--input", GOLDEN_TENSORS],
    ...["--options", JSON.stringify(ourOptions(golden)), ...names],
    ...["--granularity", options.granularity ?? "kv_head"],
  ];
}

Deno.test("kvf apply keeps what the reference keeps, one case of each method", async () => {
  const selecting = [...new Set(cases.map(({ method }) => method))]
    .filter((method) => method !== "minicache" && method !== "think");
  assertEquals(selecting.length, 11);
  for (const method of selecting) {
    const golden = cases.findLast((one) =>
      one.method === method && one.indices !== undefined
    )!;
    const { code, out, err } = await run(...callOf(golden));
    assertEquals(code, 0, err);
    const { rows } = JSON.parse(out) as { rows: number[][] };
    assertEquals(rows.length, golden.indices!.length);
    const choices = choicesOf(method, taskOf(golden));
    golden.indices!.forEach((kept, head) => {
      assertEquals(rows[head]!.length, kept.length, golden.case);
      const fault = choices[head]!
        .map((choice) => wrong(rows[head]!, choice, false));
      assert(fault.includes(undefined), `${golden.case}: ${fault}`);
    });
  }
});

Deno.test("kvf apply --output writes both layers that MiniCache shares", async () => {
  using at = folder();
  const output = `${at.path}/rows.safetensors`;
  const golden = cases.find(({ method }) => method === "minicache")!;
  const { code, err } = await kvf(...callOf(golden), "--output", output);
  assertEquals(code, 0, err);
  const direction = storedRows(golden.case, "direction");
  for (const [side, at] of [["current", ""], ["previous", "lower."]] as const) {
    const lengths = storedRows(golden.case, `mag_${side}`);
    const plain = storedRows("minicache", side);
    direction.forEach((rows, head) =>
      ["k", "v"].forEach((what) => {
        const { data, shape } = readTensor(output, `${at}${what}.${head}`);
        assertEquals(shape, [rows.length, rows[0]!.length]);
        rows.forEach((row, i) => {
          const exact = golden.indices![head]!.includes(i);
          row.forEach((x, d) => {
            const y = exact ? plain[head]![i]![d]! : x * lengths[head]![i]![0]!;
            const z = data[i * row.length + d]!;
            assert(Math.abs(y - z) <= (exact ? 0 : 1e-5 * (1 + Math.abs(y))));
          });
        });
      })
    );
  }
});

Deno.test("kvf apply runs every method on recorded tensors, or says why not", async () => {
  const golden = cases.find(({ input }) => input === "a")!;
  const tensors = callOf({ ...golden, method: "fullkv" });
  const names = tensors.slice(
    tensors.indexOf("--q"),
    tensors.indexOf("--q") + 6,
  );
  const own: Record<string, string[]> = {
    headkv: ["--head-rows", "10,20,40,58"],
    kvquant: ["--rope-theta", "10000"],
    minicache: [
      ...["--lower-k", "a.v", "--lower-v", "a.k"],
      ...["--layer", "1", "--layers", "2", "--first-share", "0"],
    ],
  };
  for (const [name, method] of METHODS) {
    const { code, out, err } = await run(
      ...["apply", "--json", "--method", name, "--input", GOLDEN_TENSORS],
      ...names,
      ...("budget" in method.options ? ["--budget", "48"] : []),
      ...own[name] ?? [],
    );
    if (name === "minference") {
      assertEquals(code, 2);
      assertStringIncludes(err, "acts on the attention of prefill");
      continue;
    }
    assertEquals([code, err], [0, ""], name);
    assertEquals(JSON.parse(out).rows.length, 2);
  }
  for (
    const [name, reason] of [
      ["kvquant", "base of the keys' rotation must be given"],
      ["minicache", "the keys and values of the layer before are missing"],
    ] as const
  ) {
    const { code, err } = await run(
      ...["apply", "--method", name, "--input", GOLDEN_TENSORS, ...names],
    );
    assertEquals(code, 2);
    assertStringIncludes(err, reason);
  }
});

/** The nearest half-precision number's bits; for numbers that are normal there. */
function halfBits(x: number): number {
  const bits = new Uint32Array(Float32Array.of(Math.f16round(x)).buffer)[0]!;
  const exponent = (bits >>> 23 & 0xff) - 112;
  return exponent <= 0
    ? bits >>> 16 & 0x8000
    : bits >>> 16 & 0x8000 | exponent << 10 | bits >>> 13 & 0x3ff;
}

Deno.test("kvf apply reads half-precision tensors of any name, with or without a batch of one", async () => {
  using at = folder();
  const golden = cases.find(({ method, options }) =>
    method === "snapkv" && options.granularity === "kv_head"
  )!;
  const parts = ["q", "k", "v"].map((name) =>
    readTensor(GOLDEN_TENSORS, `${golden.input}.${name}`)
  );
  const bfloat = (x: number) =>
    new Uint32Array(Float32Array.of(x).buffer)[0]! >>> 16;
  for (const [dtype, bits] of [["F16", halfBits], ["BF16", bfloat]] as const) {
    const input = `${at.path}/${dtype}.safetensors`;
    const names = ["model.layers.3/q proj", "ключ", "v"];
    const tensors = parts.map(({ data }) => Uint16Array.from(data, bits));
    for (const batch of [[], [1]]) {
      writeSafetensors(
        input,
        Object.fromEntries(
          names.map((name, i) => [name, {
            shape: [...batch, ...parts[i]!.shape],
            data: tensors[i]!,
            dtype,
          }]),
        ),
      );
      const output = `${at.path}/out.safetensors`;
      const call = callOf(golden);
      const { code, out, err } = await run(
        ...call.slice(0, call.indexOf("--q")),
        ...["--input", input, "--output", output],
        ...names.flatMap((name, i) => [["--q", "--k", "--v"][i]!, name]),
        ...["--granularity", "kv_head"],
      );
      assertEquals(code, 0, err);
      const { rows } = JSON.parse(out) as { rows: number[][] };
      const rounded = names.map((name) => readTensor(input, name).data);
      const task = taskOf(golden);
      const [q, k, v] = rounded;
      const same = { ...task, input: { ...task.input, q: q!, k: k!, v: v! } };
      const choices = choicesOf("snapkv", same);
      const { headDim, tokens } = task.input;
      rows.forEach((kept, head) => {
        const fault = wrong(kept, choices[head]![0]!, false);
        assertEquals(fault, undefined, dtype);
        kept.forEach((p, i) =>
          ["k", "v"].forEach((what, part) => {
            const own = readTensor(output, `${what}.${head}`).data;
            const from = (head * tokens + p) * headDim;
            assertEquals(
              own.slice(i * headDim, (i + 1) * headDim),
              Float32Array.from(
                rounded[part + 1]!.subarray(from, from + headDim),
              ),
            );
          })
        );
      });
    }
    writeSafetensors(input, {
      q: { shape: [2, 2, 2, 2], data: new Float32Array(16) },
    });
    const two = await run(
      ...["apply", "--method", "fullkv", "--input", input],
    );
    assertEquals(two.code, 2);
    assertStringIncludes(two.err, "after a batch of 1: it is [2,2,2,2]");
  }
});
