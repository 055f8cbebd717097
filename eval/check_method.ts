/**
 * What every method must hold, whatever it does: checks that run on any method, the project's own and a user's file.
 *
 * @module
 */
import {
  Cache,
  type Device,
  type RecordedLayer,
  type Sequence,
} from "../ffi/mod.ts";
import { type AnyMethod, METHODS, resolveOptions } from "../methods/mod.ts";
import type { Granularity, ModelShape, Policy } from "../methods/types.ts";
import {
  answerAll,
  type Configuration,
  generate,
  type GenerationOptions,
  type LanguageModel,
} from "./engine/mod.ts";

/** One thing that a method must hold. */
export interface MethodCheck {
  /** What, and where. */
  name: string;
  /** Throws when it does not hold. */
  run(): Promise<void>;
}

/** Tokens that checked methods may keep. */
const BUDGET = 40;
/** Around the window, the budget and the page size. */
const LENGTHS = [1, 3, BUDGET - 1, BUDGET, BUDGET + 1, 130];
const NEW_TOKENS = 5;

/** Options to check a method with: a small budget, a small window, and what the method says it needs. */
export function checkedOptions(
  method: AnyMethod,
  shape: ModelShape,
  budget = BUDGET,
): Record<string, unknown> {
  return resolveOptions(method, {
    ...("budget" in method.options ? { budget } : {}),
    ...("observationWindow" in method.options ? { observationWindow: 4 } : {}),
    ...method.exampleOptions?.(shape),
  });
}

function promptOf(length: number, vocab: number, seed = 0): number[] {
  return Array.from(
    { length },
    (_, i) => (i * 37 + seed * 11 + i * i) % (vocab - 3) + 3,
  );
}

function fail(what: string, expected: unknown, actual: unknown): never {
  throw new Error(
    `Cannot accept the method as ${what}: expected ${expected}, got ${actual}`,
  );
}

function sameBits(what: string, a: Float32Array, b: Float32Array): void {
  if (a.length !== b.length) fail(what, `${a.length} logits`, b.length);
  const at = a.findIndex((x, i) => !Object.is(x, b[i]));
  if (at >= 0) fail(what, a[at], `${b[at]} at logit ${at}`);
}

/**
 * Checks of a method on a model, in one layout.
 * @param variant options that are not the method's defaults, for compositions
 */
export function modelChecks(
  method: AnyMethod,
  model: LanguageModel,
  granularity: Granularity,
  variant: Record<string, unknown> = {},
): MethodCheck[] {
  const { vocab } = model.native.config;
  const options: GenerationOptions = {
    maxNewTokens: NEW_TOKENS,
    logits: true,
    chunk: 1,
    onTokens: () => checkLedger(model.cache),
  };
  const configured = (): Configuration => ({
    method,
    options: {
      ...checkedOptions(method, model.shape),
      ...variant,
    },
    granularity,
  });
  const full: Configuration = {
    method: METHODS.get("fullkv")!,
    options: { quant: "none" },
    granularity: "kv_head",
  };
  const run = async (prompt: number[], ...configurations: Configuration[]) =>
    (await generate(model, prompt, configurations, options))
      .map(({ logits }) => logits!);
  const plain = method.kind === "evict" &&
    (configured().options.quant ?? "none") === "none";

  const checks: MethodCheck[] = [{
    name: "rows: within budget, protected ones kept, ascending, bytes true",
    async run() {
      for (const length of LENGTHS) {
        const policy = method.create(configured().options, model.shape);
        using sequence = model.cache.sequence(granularity);
        const prefill = sequence.prefill(
          model.native,
          promptOf(length, vocab),
          policy.observe,
        );
        for (let layer = 0; layer < model.shape.layers; layer++) {
          await prefill.layers(layer, 1, { phase: "project" });
          sequence.prepare(policy, layer);
          await prefill.layers(layer, 1, { phase: "attend" });
          sequence.act(policy, layer);
          checkRows(sequence, policy, model.shape, layer, length);
        }
        prefill.end();
        checkLedger(model.cache);
      }
    },
  }, {
    name: "same answer: twice, beside others, in a batch of five",
    async run() {
      const prompts = [77, 1, 130, 41, 64].map((length, i) =>
        promptOf(length, vocab, i)
      );
      const alone: Float32Array[] = [];
      for (const prompt of prompts) {
        const [first] = await run(prompt, configured());
        alone.push(first!);
      }
      const [again] = await run(prompts[2]!, configured());
      sameBits("a second run must give the same logits", alone[2]!, again!);
      const beside = await run(prompts[2]!, full, configured(), full);
      sameBits(
        "a shared prefill must give the same logits",
        alone[2]!,
        beside[1]!,
      );
      sameBits("it must leave others alone", beside[0]!, beside[2]!);
      const jobs = prompts.map((prompt, i) => ({
        i,
        prompt,
        configurations: [configured()],
        options,
      }));
      for await (const answers of answerAll(model, jobs, { slots: 5 })) {
        for (const { job, generation } of answers) {
          sameBits(
            "a batch must give the same logits",
            alone[job.i]!,
            generation.logits!,
          );
        }
      }
      const ledger = model.cache.ledger();
      if (ledger.residentBytes > 0) {
        fail("all pages must come back", 0, ledger.residentBytes);
      }
    },
  }];
  if (plain && "budget" in method.options) {
    checks.push({
      name: "a budget as long as the prompt changes no bit",
      async run() {
        for (const length of LENGTHS) {
          const prompt = promptOf(length, vocab);
          const [expected] = await run(prompt, full);
          // A method that acts again sees the answer as well.
          const { decode, again } = method.create(
            configured().options,
            model.shape,
          );
          const most = decode ?? again ? length + NEW_TOKENS : length;
          const small = configured();
          const [actual] = await run(prompt, {
            ...small,
            // Also where the caller's variant has a budget of its own.
            options: { ...small.options, budget: Math.max(most, BUDGET) },
          });
          sameBits("logits must be those of FullKV", expected!, actual!);
        }
      },
    });
  }
  return checks;
}

/** Checks of a method on recorded tensors: group sizes and head widths that models have, and odd ones. */
export function shapeChecks(
  method: AnyMethod,
  device: Device,
  variant: Record<string, unknown> = {},
): MethodCheck[] {
  const shapes = [1, 3, 4, 5, 8].flatMap((groupSize) =>
    [32, 64, 80, 96, 128].map((headDim) => ({ groupSize, headDim }))
  );
  return method.granularities.map((granularity) => ({
    name: `rows for all group sizes and head widths, ${granularity}`,
    // deno-lint-ignore require-await -- the shape of all checks
    async run() {
      for (const [i, { groupSize, headDim }] of shapes.entries()) {
        const kvHeads = 1 + i % 2;
        const shape = {
          layers: 3,
          kvHeads,
          queryHeads: kvHeads * groupSize,
          headDim,
        };
        const options = { ...checkedOptions(method, shape, 24), ...variant };
        const longest = 70;
        const make = (heads: number, seed: number) =>
          noise(heads * longest * headDim, 3 * i + seed);
        const q = make(shape.queryHeads, 0);
        const [k, v] = [make(kvHeads, 1), make(kvHeads, 2)];
        // Far above the budget, and either at it or one token above.
        for (const tokens of [longest, 24 + i % 2]) {
          const size = tokens * headDim;
          checkShape(method.create(options, shape), shape, {
            device,
            granularity,
            tokens,
            tensors: {
              q: q.subarray(0, shape.queryHeads * size),
              k: k.subarray(0, kvHeads * size),
              v: v.subarray(0, kvHeads * size),
            },
          });
        }
      }
    },
  }));
}

/** Lets a policy act on recorded layers of one shape, and checks what is left. */
function checkShape(
  policy: Policy,
  shape: ModelShape,
  { device, granularity, tokens, tensors }: {
    device: Device;
    granularity: Granularity;
    tokens: number;
    tensors: RecordedLayer;
  },
): void {
  using cache = new Cache(device, { ...shape, rowDtype: "f32" });
  using sequence = cache.sequence(granularity);
  sequence.record(
    tokens,
    policy.observe,
    Float32Array.from(
      { length: shape.headDim / 2 },
      (_, j) => 10000 ** (-2 * j / shape.headDim),
    ),
  );
  for (let layer = 0; layer < shape.layers; layer++) {
    sequence.recordLayer(layer, tensors);
    sequence.prepare(policy, layer);
    sequence.act(policy, layer);
    checkRows(sequence, policy, shape, layer, tokens);
  }
  checkLedger(cache);
}

/** Numbers between -1 and 1 that look random. */
function noise(length: number, seed: number): Float32Array {
  return Float32Array.from(
    { length },
    (_, i) => Math.sin((i + 1) * 12.9898 + seed * 78.233) * 43758.5453 % 1,
  );
}

function checkLedger(cache: Cache): void {
  const { promisedBytes, ownedBytes } = cache.ledger();
  if (promisedBytes !== ownedBytes) {
    fail("promised bytes must be held", promisedBytes, ownedBytes);
  }
}

function checkRows(
  sequence: Sequence,
  policy: Policy,
  shape: ModelShape,
  layer: number,
  length: number,
): void {
  const { storedHeads } = sequence;
  const facts = { ...shape, layer, length, storedHeads };
  const most = policy.maxRows?.(facts) ?? storedHeads * length;
  const rows = sequence.rows()[layer]!;
  const held = rows.reduce((sum, n) => sum + n, 0);
  const where = `layer ${layer} of ${length} tokens`;
  if (held > most) fail(`${where} must keep its budget`, most, held);
  const { first = 0, last = 0 } = policy.keeps ?? {};
  for (let head = 0; head < storedHeads; head++) {
    const kept = [...sequence.positions(layer, head)];
    if (kept.some((row, i) => row >= length || row <= (kept[i - 1] ?? -1))) {
      fail(`rows of ${where} must ascend and be below`, length, kept);
    }
    const there = new Set(kept);
    for (let row = 0; row < length; row++) {
      if ((row < first || row >= length - last) && !there.has(row)) {
        fail(`${where} must keep protected rows`, row, kept);
      }
    }
  }
}
