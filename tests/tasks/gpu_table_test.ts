/** The table of the GPU benchmark, from made-up measurements. */
import { assert, assertAlmostEquals } from "@std/assert";
import { attentionFlop, linearFlop, table } from "../../tasks/gpu/_table.ts";

const LLAMA_8B = {
  layers: 32,
  hidden: 4096,
  queryHeads: 32,
  kvHeads: 8,
  headDim: 128,
  intermediate: 14336,
};

Deno.test("linearFlop() and attentionFlop() count the operations of Llama-3-8B", () => {
  assertAlmostEquals(linearFlop(LLAMA_8B) / 1e9, 2 * 6.98, 0.01);
  assertAlmostEquals(attentionFlop(LLAMA_8B, 8192) / 1e12, 17.6, 0.05);
});

Deno.test("table() sets decode against the bytes of a step and attention against the peers, programs against plain steps", () => {
  const text = table(LLAMA_8B, [
    { what: "device", name: "a GPU" },
    { what: "copy", bytes_per_s: 4e12 },
    { what: "read", bytes_per_s: 4.5e12 },
    { what: "products", n: 8192, flop_per_s: 7e14, blas: true },
    { what: "attention", n: 8192, ms: 1.1, flop_per_s: 5e14 },
    { what: "decode", batch: 1, n: 8192, rows: 0, ms: 5, bytes: 16e9 },
    {
      what: "program",
      name: "H2O",
      batch: 1,
      n: 4096,
      rows: 4096,
      ms: 4.12,
      "plain_ms": 4,
      "host_ms": 0.04,
    },
    {
      what: "program",
      name: "Quest",
      batch: 1,
      n: 4096,
      rows: 1024,
      ms: 4,
      "plain_ms": 3.2,
      "host_ms": 0,
      "whole_ms": 5,
    },
    { what: "packing", batch: 2, n: 4096, bits: 4, ms: 10 },
  ], [{ what: "attention", peer: "flash", n: 8192, ms: 2.2 }]);
  assert(
    text.startsWith("a GPU: copy 4.00 TB/s, read 4.50 TB/s, products of a"),
  );
  assert(
    text.includes(
      "| decode, batch 1, 8192 tokens, full | 5.00 ms | 4.00 ms | 1.25 |",
    ),
  );
  assert(
    text.includes(
      "| step of H2O, batch 1, 4096 rows, 4096 read | 4.12 ms | 4.00 ms without | 3.0 % more, 1.0 % the host |",
    ),
  );
  assert(
    text.includes(
      "1024 read | 4.00 ms | 3.20 ms without | 25.0 % more, 0.0 % the host; all rows 5.00 ms |",
    ),
  );
  assert(
    text.includes(
      "| packing a prompt of 4096 tokens, 4 bits, batch 2 | 10.0 ms |",
    ),
  );
  assert(text.includes("| 1.10 ms | flash 2.20 ms | 0.50 |"));
});

Deno.test("table() sets packed rows against their bytes and against plain rows of the same prompts", () => {
  const text = table(LLAMA_8B, [
    { what: "copy", bytes_per_s: 4e12 },
    { what: "packed", batch: 1, n: 8192, bits: 0, ms: 3.5, bytes: 12e9 },
    { what: "packed", batch: 32, n: 8192, bits: 0, ms: 12, bytes: 40e9 },
    { what: "packed", batch: 32, n: 8192, bits: 4, ms: 6, bytes: 20e9 },
  ], []);
  const name = "| decode, batch 32, 8192 tokens, 4-bit rows";
  assert(text.includes(`${name} | 6.00 ms | 5.00 ms | 1.20 |`), text);
  assert(
    text.includes(`${name}: against plain rows | 6.00 ms | 12.0 ms | 0.50 |`),
    text,
  );
});

Deno.test("table() sets a peer's decode and prefill against the same of ours", () => {
  const text = table(LLAMA_8B, [
    { what: "decode", batch: 1, n: 8192, rows: 0, ms: 5, bytes: 16e9 },
    { what: "decode", batch: 1, n: 8192, rows: 1024, ms: 4, bytes: 15e9 },
    {
      what: "prefill",
      n: 8192,
      rows: 1024,
      ms: 200,
      "peak_bytes": 16 * 2 ** 30,
    },
  ], [
    { what: "prefill", peer: "hf", n: 8192, ms: 300, "peak_bytes": 2 ** 35 },
    { what: "decode", peer: "hf", batch: 1, n: 8192, rows: 0, ms: 25 },
    { what: "decode", peer: "hf", batch: 1, n: 8192, rows: 1024, ms: 24 },
  ]);
  const lines = [
    "| prefill, 8192 tokens: against hf | 200 ms | 300 ms | 1.50 times as fast |",
    "| prefill, 8192 tokens: peak memory of hf | 16.00 GiB | 32.00 GiB | 0.50 |",
    "| decode, 8192 tokens: against hf | 5.00 ms | 25.0 ms | 5.00 times as fast |",
    "| decode, 8192 tokens, cut to 1024 rows: against hf | 4.00 ms | 24.0 ms | 6.00 times as fast |",
  ];
  for (const line of lines) assert(text.includes(line), text);
});

Deno.test("table() says whether tokens among others are those of a sequence alone", () => {
  const line = { what: "same", batch: 8, steps: 64 };
  const text = table(LLAMA_8B, [
    { ...line, rows: 0, "equal_tokens": 64, equal: true },
    { ...line, rows: 1024, "equal_tokens": 5, equal: false },
  ], []);
  const name = "| tokens of a sequence among 8";
  assert(
    text.includes(
      `${name}, full: those of it alone | 64 of 64 | 64 | equal, logits too |`,
    ),
    text,
  );
  assert(
    text.includes(
      `${name}, 1024 rows: those of it alone | 5 of 64 | 64 | DIFFERENT |`,
    ),
    text,
  );
});

Deno.test("table() sets loading against 20 GB/s and kept bytes against the budget's", () => {
  const text = table(LLAMA_8B, [
    {
      what: "loading",
      device: "cuda",
      ms: 1000,
      bytes: 5e9,
      "bytes_per_s": 5e9,
      "host_peak_bytes": 2 ** 25,
    },
    {
      what: "bytes",
      method: "adakv",
      n: 8192,
      rows: 1024,
      least: 205,
      most: 3000,
      "resident_bytes": 0.1375 * 2 ** 30,
      "expected_bytes": 0.125 * 2 ** 30,
    },
  ], []);
  assert(text.startsWith("| what |"), text);
  const lines = [
    "| loading 4.66 GiB of weights, cuda | 1.000 s | 250 ms at 20 GB/s | 5.0 GB/s |",
    "| loading: peak of host memory, cuda | 0.03 GiB |",
    "| bytes of adakv, 8192 tokens, mean of 1024 rows, 205 to 3000 a head | 0.1375 GiB | 0.1250 GiB | 1.10 |",
  ];
  for (const line of lines) assert(text.includes(line), text);
});
