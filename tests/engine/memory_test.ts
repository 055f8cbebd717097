/** What prompts are predicted to need, for a model of 8 billion weights that no test can load. */
import { assert, assertEquals } from "@std/assert";
import { oneLayerBytes, workBytes } from "../../eval/engine/memory.ts";
import type { LanguageModel } from "../../eval/engine/language_model.ts";
import type { Member } from "../../eval/engine/memory.ts";

const GIB = 2 ** 30;
const shape = { layers: 32, queryHeads: 32, kvHeads: 8, headDim: 128 };
const config = { hidden: 4096, intermediate: 14336, vocab: 128256 };
const PAGE = 32 * (2 * 128 * 2 + 4);

const llama = (kind: "cpu" | "cuda", threads = 1): LanguageModel =>
  ({
    shape,
    native: { config },
    device: { kind },
    facts: { threads },
    cache: { pageBytes: PAGE },
  }) as unknown as LanguageModel;
const member = {
  policy: {},
  configuration: { granularity: "kv_head" },
} as unknown as Member;
const snapkv = { windowQueries: 32, columnMasses: [] };

/** Weights in BF16, one layer's full rows, 1024 rows of the others, activations. */
function peak(length: number, least = false): number {
  const { hidden, intermediate, vocab } = config;
  const { layers, queryHeads, kvHeads, headDim } = shape;
  const layer = hidden * (queryHeads + 2 * kvHeads) * headDim +
    hidden * queryHeads * headDim + 3 * hidden * intermediate + 2 * hidden;
  const weights = 2 * (layers * layer + 2 * vocab * hidden + hidden);
  const rest = (layers - 1) * kvHeads * 1024 / 32 * PAGE;
  const model = llama("cuda");
  return weights + rest + oneLayerBytes(model, member, length) +
    workBytes(model, length, snapkv, least);
}

Deno.test("a prompt of 32k tokens that is compressed to 1024 rows needs at most 18.5 GiB with the weights on a GPU", () => {
  assert(peak(32 * 1024) <= 18.5 * GIB, `${peak(32 * 1024) / GIB} GiB`);
});

Deno.test("with little memory a GPU needs no activations of the whole prompt, only its observations and one layer's rows", () => {
  const more = (peak(128 * 1024, true) - peak(64 * 1024, true)) / 65536;
  // Rows of 8 heads, and scores of 32 query heads in 8 forms.
  assertEquals(more, 8 * PAGE / 32 + 8 * 32 * 4);
  assert(peak(128 * 1024, true) < 18 * GIB);
  assert(peak(128 * 1024) < 22 * GIB, `${peak(128 * 1024) / GIB} GiB`);
});

Deno.test("a CPU holds the activations of the whole prompt in any case", () => {
  const model = llama("cpu");
  assertEquals(
    workBytes(model, 32768, snapkv, true),
    workBytes(model, 32768, snapkv),
  );
});

Deno.test("column masses on a CPU need the probabilities of a tile of 96 queries for each thread, a GPU none", () => {
  const masses = { windowQueries: 0, columnMasses: [{}] };
  const predicted = (kind: "cpu" | "cuda", threads: number) =>
    workBytes(
      llama(kind, threads),
      65536,
      masses as unknown as Parameters<typeof workBytes>[2],
    );
  const strip = 4 * 96 * 65536;
  // Between 4 and 8 threads the sums of one more tile lie beside it.
  const sums = 4 * 32 * 65536;
  const more = predicted("cpu", 8) - predicted("cpu", 4);
  assert(more >= 4 * strip + sums, `${more} bytes`);
  assert(more <= 1.02 * (4 * strip + sums), `${more} bytes`);
  assertEquals(predicted("cuda", 8), predicted("cuda", 4));
});
