/** Every method's cache in a real forward pass, for all group sizes and head widths, against a decoder in doubles. */
import { assert } from "@std/assert";
import { checkedOptions } from "../../eval/check_method.ts";
import { Cache, decode, Device, type Sequence } from "../../ffi/mod.ts";
import { METHODS } from "../../methods/mod.ts";
import type { Granularity, Policy } from "../../methods/types.ts";
import { BUILD, frequencies, TINY } from "../ffi/tiny.ts";
import { type DoubleCache, DoubleModel } from "./_double_model.ts";

const TOKENS = 70;
const STEPS = 4;
const VOCAB = 40;
const PROMPT = Array.from(
  { length: TOKENS },
  (_, i) => (i * 37 + i * i) % VOCAB,
);

/** Packed rows, more of them than defaults leave of so short a prompt, and in company. */
const VARIANTS: [string, Record<string, unknown>][] = [
  ["kivi", { bits: 2, residual: 0 }],
  ["kivi", { bits: 3, compat: "reference" }],
  ["kvquant", { bits: 3, residual: 5, outliers: 0.05 }],
  ["gear", { bits: 4, residual: 5, rank: 2 }],
  ["think", { budget: 64, fullRows: 20, pruneRatio: 0.3 }],
  ["snapkv", { budget: 66, quant: "kvquant:4", merge: "weighted" }],
  ["h2o", { budget: 66, budgetPolicy: "adaptive", quant: "gear:2" }],
];

/** Reads the prompt, and lets the policy act on each layer. */
async function prefilled(
  model: DoubleModel,
  cache: Cache,
  granularity: Granularity,
  policy: Policy,
): Promise<Sequence> {
  const sequence = cache.sequence(granularity);
  const prefill = sequence.prefill(model.native, PROMPT, policy.observe);
  for (let layer = 0; layer < model.config.layers; layer++) {
    await prefill.layers(layer, 1);
    sequence.act(policy, layer);
  }
  prefill.end();
  return sequence;
}

/** What the cache holds, in doubles. */
function held(sequence: Sequence, layers: number, dim: number): DoubleCache {
  return Array.from(
    { length: layers },
    (_, layer) =>
      Array.from({ length: sequence.storedHeads }, (_, head) => {
        const [keys, values] = (["keys", "values"] as const)
          .map((what) => sequence.readRows(layer, head, what));
        return Array.from(sequence.positions(layer, head), (position, row) => ({
          key: keys!.subarray(row * dim, (row + 1) * dim),
          value: values!.subarray(row * dim, (row + 1) * dim),
          position,
        }));
      }),
  );
}

function assertNear(
  actual: ArrayLike<number>,
  expected: number[],
  what: string,
) {
  let [difference, size] = [0, 0];
  expected.forEach((x, i) => {
    difference += (x - actual[i]!) ** 2;
    size += x * x;
  });
  const error = Math.sqrt(difference / size);
  assert(error < 1e-5, `${what}: relative error is ${error}`);
}

for (const groupSize of [1, 3, 4, 5, 8]) {
  Deno.test(`steps over every method's rows are those of a decoder in doubles, ${groupSize} query heads a group`, async () => {
    using device = new Device({ ...BUILD, threads: 1 });
    for (const [i, headDim] of [32, 64, 80, 96, 128].entries()) {
      const kvHeads = 1 + i % 2;
      const shape = {
        layers: 2,
        queryHeads: kvHeads * groupSize,
        kvHeads,
        headDim,
      };
      using model = new DoubleModel(device, {
        ...shape,
        ...TINY,
        vocab: VOCAB,
        inverseFrequencies: frequencies(headDim),
        layerWindows: [0, i === 1 || i === 3 ? 33 : 0],
        qkNorm: i % 2 === 0,
      });
      const full = model.emptyCache(kvHeads);
      const first = PROMPT.map((token, at) => model.step(token, at, full)).at(
        -1,
      )!;
      using cache = new Cache(device, { ...shape, rowDtype: "f32" });
      const plain = [...METHODS.keys()].map((name) => [name, {}] as const);
      for (const [name, variant] of [...plain, ...VARIANTS]) {
        const method = METHODS.get(name)!;
        const options = { ...checkedOptions(method, shape, 24), ...variant };
        const policy = method.create(options, shape);
        // What acts before attention or chooses rows per step is not a matter of the rows alone.
        if (policy.beforeAttention || policy.decode) continue;
        for (const granularity of method.granularities) {
          using sequence = await prefilled(model, cache, granularity, policy);
          const isPacked = sequence.packedRows().flat().some((n) => n > 0);
          assert(isPacked || !VARIANTS.some((one) => one[1] === variant), name);
          let token = 0;
          for (let step = 0; step < STEPS; step++) {
            const one = [sequence];
            const { tokens, logits } = await decode(
              model.native,
              cache,
              one,
              1,
              { logits: true },
            );
            // Read after the step, which first packs a page that has left the residual; the double computes the newest row.
            const position = TOKENS + step - 1;
            const rows = held(sequence, shape.layers, headDim).map((heads) =>
              heads.map((own) => own.filter((row) => row.position < position))
            );
            const expected = step === 0
              ? first
              : model.step(token, position, rows);
            const where = `${name}, ${granularity}, width ${headDim}`;
            assertNear(logits!, expected, `${where}, step ${step}`);
            token = tokens[0]![0]!;
          }
        }
      }
    }
  });
}
