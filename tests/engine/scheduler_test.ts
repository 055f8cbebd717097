/** Continuous batching: the same answers as single runs, whatever runs beside them and however little memory there is. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  answerAll,
  type Configuration,
  crossConfigurations,
  generate,
  type Job,
  LanguageModel,
  leastBytes,
  type ScheduleOptions,
} from "../../eval/engine/mod.ts";
import {
  fullBytes,
  keepsAll,
  keptBytes,
  type Member,
  oneLayerBytes,
  ownBytes,
} from "../../eval/engine/memory.ts";
import { NativeError, PAGE_ROWS } from "../../ffi/mod.ts";
import { defineMethod, integer, METHODS } from "../../methods/mod.ts";
import type { AnyMethod } from "../../methods/mod.ts";
import { MODEL_BUILD } from "../ffi/tiny.ts";

const MODEL = fromFileUrl(
  new URL("../goldens/models/llama", import.meta.url),
);
const prompt = (length: number, seed: number): number[] =>
  Array.from({ length }, (_, i) => (i * 37 + seed * 11 + i * i) % 250 + 3);

const named = (...names: string[]): AnyMethod[] =>
  names.map((name) => METHODS.get(name)!);

function configurations(): Configuration[] {
  return [
    ...crossConfigurations(
      named("fullkv", "snapkv", "h2o", "streamingllm", "l2norm"),
      [40, 70],
      { observationWindow: 4 },
      "kv_head",
    ),
    ...crossConfigurations(
      named("fullkv", "snapkv"),
      [40],
      { observationWindow: 4 },
      "query_head",
    ),
    // Methods that act during generation, at moments of their own.
    ...crossConfigurations(
      named("snapkv", "l2norm"),
      [40],
      { observationWindow: 4, schedule: "every:3" },
      "kv_head",
    ),
    ...crossConfigurations(
      named("h2o", "streamingllm"),
      [40],
      { schedule: "step" },
      "kv_head",
    ),
  ];
}

/** Prompts and answers of many lengths. */
function jobs(): Job[] {
  return [200, 33, 120, 1, 410, 64, 95].map((length, i) => ({
    prompt: prompt(length, i),
    configurations: configurations(),
    options: {
      maxNewTokens: 3 + (i * 7) % 20,
      temperature: 1,
      topP: 0.9,
      seed: i,
      stop: [17, 40 + i],
    },
  }));
}

/** Tokens by job and configuration. */
async function schedule(
  model: LanguageModel,
  options: ScheduleOptions,
): Promise<{ tokens: number[][][]; batch: number; shared: number }> {
  const all = jobs();
  const tokens: number[][][] = all.map(() => []);
  let batch = 0, shared = 0;
  for await (const answers of answerAll(model, all, options)) {
    for (const { job, index, generation } of answers) {
      const own = tokens[all.indexOf(job)]!;
      assertEquals(own[index], undefined, "an answer came twice");
      own[index] = generation.tokens;
      batch = Math.max(batch, generation.timing.batch);
      shared = Math.max(shared, generation.timing.sharedPrefill);
      if (generation.granularity === "kv_head") {
        assert(generation.cache.peakBytes >= generation.cache.residentBytes);
      }
    }
  }
  const { sequences, residentBytes } = model.cache.ledger();
  assertEquals([sequences, residentBytes], [0, 0]);
  return { tokens, batch, shared };
}

async function single(model: LanguageModel): Promise<number[][][]> {
  const tokens: number[][][] = [];
  for (const job of jobs()) {
    const own: number[][] = [];
    for (const configuration of job.configurations) {
      const [one] = await generate(
        model,
        job.prompt,
        [configuration],
        job.options,
      );
      own.push(one!.tokens);
    }
    tokens.push(own);
  }
  return tokens;
}

Deno.test("answerAll gives the tokens of single runs for any number of slots", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const expected = await single(model);
  assert(new Set(expected.flat().map(({ length }) => length)).size > 3);
  for (const slots of [1, 5, 64]) {
    const { tokens, batch, shared } = await schedule(model, { slots });
    assertEquals(tokens, expected, `${slots} slots`);
    assert(batch <= slots);
    // Several prompts are in one batch where there is room.
    if (slots === 64) assert(batch > configurations().length);
    assertEquals(shared, configurations().length);
  }
});

Deno.test("answerAll stays within its memory and gives the same tokens with little of it", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const expected = await single(model);
  const least = Math.max(...jobs().map((job) => leastBytes(model, job)));
  const all = configurations().length;
  for (const [memoryBytes, shares] of [[least, 1], [4 * least, all]] as const) {
    // The cache itself refuses more, so a wrong prediction fails.
    using tight = await LanguageModel.load(MODEL, {
      ...MODEL_BUILD,
      cacheLimitBytes: memoryBytes,
    });
    const { tokens, shared } = await schedule(tight, { memoryBytes });
    assertEquals(tokens, expected, `${memoryBytes} bytes`);
    assert(shared >= shares);
  }
  const { message } = await assertRejects(
    () => schedule(model, { memoryBytes: least - 1 }),
    RangeError,
    `Cannot generate as a prompt and its cache must fit in ${least - 1} bytes`,
  );
  assert(message.endsWith(` take ${least}`), message);
  assertEquals(model.cache.ledger().sequences, 0);
});

Deno.test("a prompt whose rows have no room is refused before a layer runs", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const ids = prompt(600, 1);
  for (const configuration of configurations()) {
    const { method, options } = configuration;
    const policy = method.create(options, model.shape);
    const member = { configuration, policy };
    const kept = keptBytes(model, member, ids.length)!;
    const { layers } = model.shape;
    const need = Math.max(
      kept,
      oneLayerBytes(model, member, ids.length) + kept * (1 - 1 / layers),
    );
    const label = `${method.name} ${JSON.stringify(options)}`;
    for (const room of [need, Math.ceil(need) - 1]) {
      using tight = await LanguageModel.load(MODEL, {
        ...MODEL_BUILD,
        cacheLimitBytes: room,
      });
      const answer = generate(tight, ids, [configuration], { maxNewTokens: 1 });
      if (room < need) {
        const error = await assertRejects(
          () => answer,
          NativeError,
          "bytes needed",
          label,
        );
        assertEquals(error.kind, "memory");
        assertEquals(tight.cache.ledger().peakBytes, 0, label);
        // Another prompt still has room.
        await generate(tight, ids.slice(0, 60), [configuration], {
          maxNewTokens: 1,
        });
      } else {
        // Nothing is refused for its prompt; decode may need a page.
        await answer.catch((error) => {
          assert(tight.cache.ledger().peakBytes > 0, `${label}: ${error}`);
        });
      }
      assertEquals(tight.cache.ledger().sequences, 0);
    }
  }
});

Deno.test("answerAll frees everything when its caller stops early or a job is wrong", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  for await (const _ of answerAll(model, jobs())) break;
  assertEquals(model.cache.ledger().sequences, 0);
  await assertRejects(
    async () => {
      const [first, ...rest] = jobs();
      const wrong = { ...rest[0]!, prompt: [1e6] };
      for await (const _ of answerAll(model, [first!, wrong])) { /* go on */ }
    },
    RangeError,
  );
  assertEquals(model.cache.ledger().sequences, 0);
});

/** Changes the values that attention sees, whatever its budget; with a key it says so. */
const smearing = (prefillKey?: string) =>
  defineMethod<{ budget: number }>({
    name: "smearing",
    title: "Smearing",
    summary: "the newest rows of a prompt whose values run into each other",
    kind: "evict",
    acts: "during and after prefill",
    granularities: ["kv_head", "query_head"],
    altersPrefill: true,
    differs: "nothing known",
    options: { budget: integer("Rows kept", { min: 1 }) },
    create: ({ budget }) => ({
      ...(prefillKey === undefined ? {} : { prefillKey }),
      beforeAttention(layer) {
        const { storedHeads, length } = layer;
        using shares = layer.fromArray(
          new Float32Array(storedHeads * length).fill(0.5),
          storedHeads,
        );
        layer.spreadValues(shares, { first: 0, span: 2 });
      },
      afterPrefill(layer) {
        if (layer.length > budget) layer.retain(null, { last: budget });
      },
    }),
  });

Deno.test("policies that alter prefill alike share one, all others read alone", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const ids = prompt(150, 1);
  for (const granularity of ["kv_head", "query_head"] as const) {
    const run = async (method: AnyMethod) =>
      await generate(
        model,
        ids,
        [
          ...crossConfigurations(named("fullkv"), [], {}, "kv_head"),
          ...crossConfigurations([method], [40, 80, 200], {}, granularity),
        ],
        { maxNewTokens: 6, logits: true },
      );
    const alone = await run(smearing());
    const shared = await run(smearing("smeared"));
    assertEquals(
      alone.map(({ timing }) => timing.sharedPrefill),
      [1, 1, 1, 1],
    );
    assertEquals(
      shared.map(({ timing }) => timing.sharedPrefill),
      [1, 3, 3, 3],
    );
    assertEquals(
      shared.map(({ logits }) => logits),
      alone.map(({ logits }) => logits),
    );
    assert(String(shared[3]!.logits) !== String(shared[0]!.logits));
  }
});

Deno.test("no method's cache ever holds more than was predicted", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const length = 333, maxNewTokens = 70;
  const ids = prompt(length, 2);
  const [full] = crossConfigurations(named("fullkv"), [], {}, "kv_head");
  const member = (configuration: Configuration): Member => ({
    configuration,
    policy: configuration.method.create(configuration.options, model.shape),
  });
  const own = (configuration: Configuration) =>
    ownBytes(model, member(configuration), length, maxNewTokens);
  const reference = member(full!);
  let tried = 0, predicted = 0;
  for (const [name, method] of METHODS) {
    for (const granularity of method.granularities) {
      for (const extra of [{}, { schedule: "every:5" }, { quant: "kivi:2" }]) {
        const given: Record<string, unknown> = Object.fromEntries(
          Object.entries({ observationWindow: 4, ...extra })
            .filter(([option]) => option in method.options),
        );
        let configuration: Configuration;
        try {
          [configuration] = crossConfigurations(
            [method],
            [48],
            given,
            granularity,
          ) as [Configuration];
          member(configuration);
        } catch (error) {
          // Not every part goes with every method, and some need a file.
          if (!(error instanceof Error)) throw error;
          continue;
        }
        tried++;
        const options = { maxNewTokens };
        const [alone] = await generate(model, ids, [configuration], options);
        const one = member(configuration);
        const lean = oneLayerBytes(model, one, length) + own(configuration) +
          (keepsAll(model, one) ? fullBytes(model, one, length) : 0);
        const label = `${name} ${granularity} ${JSON.stringify(extra)}`;
        assert(
          alone!.cache.peakBytes <= lean,
          `${label}: ${alone!.cache.peakBytes} > ${lean}`,
        );
        // No prompt is refused that would have had room; pages that ragged heads begin may be missing.
        const kept = keptBytes(model, one, length);
        // Heads that keep everything share it.
        const pages = (rows: number[]) =>
          rows.reduce((sum, n) => sum + Math.ceil(n / PAGE_ROWS), 0);
        const held = alone!.cache.rows.reduce(
          (sum, rows) =>
            sum +
            (rows.every((n) => n === length)
              ? oneLayerBytes(model, one, length)
              : pages(rows) * model.cache.pageBytes),
          0,
        );
        if (kept !== undefined) {
          predicted++;
          const begun = alone!.cache.rows.flat().length *
            model.cache.pageBytes;
          assert(kept <= held, `${label}: ${kept} > ${held}`);
          assert(
            kept >= held - begun,
            `${label}: ${kept} < ${held} - ${begun}`,
          );
        }
        if (one.policy.beforeAttention) continue;
        const shared = await generate(
          model,
          ids,
          [full!, configuration],
          options,
        );
        const most = fullBytes(model, reference, length) + own(full!) +
          own(configuration);
        assert(
          shared[1]!.cache.peakBytes <= most,
          `${label}, shared: ${shared[1]!.cache.peakBytes} > ${most}`,
        );
      }
    }
  }
  assert(tried > 30);
  assert(predicted > 40, `${predicted} of ${tried}`);
});
