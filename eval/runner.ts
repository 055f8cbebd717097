/**
 * Runs a task on a model with several configurations: one prefill per example for all of them, one record per example
 * and configuration, finished records are never computed again.
 *
 * @module
 */
import { ABI_VERSION } from "../ffi/mod.ts";
import type { Task } from "../tasks/types.ts";
import {
  type Configuration,
  generate,
  type Generation,
  type LanguageModel,
} from "./engine/mod.ts";
import { createMetric } from "./metrics/mod.ts";
import {
  buildPrompt,
  planPrompt,
  promptModel,
  PROTOCOL_SCHEMA,
  type ProtocolOptions,
} from "./protocol.ts";
import {
  compactRows,
  type EvalRecord,
  exampleHash,
  type JsonObject,
  type KeyParts,
  RECORD_SCHEMA_VERSION,
  recordKey,
  type RecordStore,
} from "./records/mod.ts";

/** Options of {@linkcode runTask}. */
export interface RunTaskOptions {
  /** Where records go. */
  store: RecordStore;
  /** Name of the model, for people. */
  modelName: string;
  /** Commit of this program. */
  commit: string;
  /** Seed of the run. */
  seed: number;
  /** How prompts are built; the defaults of {@linkcode PROTOCOL_SCHEMA} where missing. */
  protocol?: ProtocolOptions;
  /** Is given the keys of all records of the call, those finished before among them. */
  keys?: Set<string>;
  /** Called after every example. */
  onProgress?: (done: number, total: number) => void;
  /** Cancels between layers and steps. */
  signal?: AbortSignal;
}

/**
 * Runs every example of a task that is not finished.
 *
 * @returns the records of this task's examples and configurations that were computed now
 */
export async function runTask(
  model: LanguageModel,
  task: Task,
  configurations: readonly Configuration[],
  options: RunTaskOptions,
): Promise<EvalRecord[]> {
  const { generation } = model.folder;
  const asked = promptModel(model.folder, options.modelName);
  const { tokenizer } = asked;
  const protocol = PROTOCOL_SCHEMA.parse(options.protocol ?? {});
  const codec = {
    encode: (text: string) => tokenizer.encode(text, { specialTokens: false }),
    decode: (ids: number[]) =>
      tokenizer.decode(ids, { skipSpecialTokens: true }),
  };
  const metric = createMetric(task.metric, task.metricOptions);
  const further = (task.scores ?? []).map((one) => ({
    ...one,
    ...createMetric(one.metric),
  }));
  const newline = codec.encode("\n").at(-1);
  const examples = [...task.examples(codec)];
  const hash = model.folder.hash();
  const made: EvalRecord[] = [];
  for (const [i, example] of examples.entries()) {
    options.signal?.throwIfAborted();
    const stop = [
      ...new Set([
        ...generation.stopIds,
        ...(example.stopAtNewline && newline !== undefined ? [newline] : []),
      ]),
    ];
    const plan = planPrompt(asked, example, protocol);
    const parts = await Promise.all(
      configurations.map(async (configuration) => {
        const part: KeyParts = {
          model: { name: options.modelName, hash },
          example: { id: example.id, hash: await exampleHash(task, example) },
          method: {
            name: configuration.method.name,
            options: configuration.options as JsonObject,
          },
          generation: {
            device: model.device.kind,
            dtype: model.facts.dtype,
            cacheDtype: model.facts.cacheDtype,
            granularity: configuration.granularity,
            maxNewTokens: example.maxNewTokens,
            temperature: 0,
            minNewTokens: protocol.minNewTokens,
            stop,
            prompt: { ...plan },
          },
          seed: options.seed,
          build: { commit: options.commit, abi: ABI_VERSION },
        };
        return { configuration, part, key: await recordKey(part) };
      }),
    );
    for (const { key } of parts) options.keys?.add(key);
    const missing = parts.filter(({ key }) => !options.store.has(key));
    if (missing.length > 0) {
      const prompt = buildPrompt(asked, example, plan);
      const generations = await generate(
        model,
        prompt.ids,
        missing.map(({ configuration }) => configuration),
        {
          maxNewTokens: example.maxNewTokens,
          minNewTokens: protocol.minNewTokens,
          stop,
          ...(options.signal ? { signal: options.signal } : {}),
        },
      );
      const records = missing.map(({ part, key }, k): EvalRecord => {
        const one = generations[k]!;
        const text = codec.decode(one.tokens);
        return {
          schema: RECORD_SCHEMA_VERSION,
          key,
          ...part,
          task: { name: task.name, options: task.options },
          promptTokens: one.promptTokens,
          tokens: one.tokens,
          text,
          answers: example.answers,
          metric: { name: metric.name, variant: metric.variant },
          score: metric.score(text, example.answers),
          scores: {
            exact: text.trim() === (example.answers[0] ?? "") ? 1 : 0,
            ...Object.fromEntries(
              further.map((
                { name, score, answers },
              ) => [name, score(text, answers(example))]),
            ),
          },
          cache: { ...one.cache, rows: compactRows(one.cache.rows) },
          timing: {
            prefillMs: one.timing.prefillMs,
            compressMs: one.timing.compressMs,
            firstTokenMs: one.timing.firstTokenMs,
            decodeMs: one.timing.decodeMs,
            sharedPrefill: one.timing.sharedPrefill,
            batch: one.timing.batch,
          },
          stop: stopReason(one, newline),
          meta: {
            ...example.meta,
            fullTokens: prompt.fullTokens,
            truncated: prompt.truncated,
          },
        };
      });
      await options.store.append(...records);
      made.push(...records);
    }
    options.onProgress?.(i + 1, examples.length);
  }
  return made;
}

function stopReason(
  generation: Generation,
  newline: number | undefined,
): EvalRecord["stop"] {
  if (generation.stopReason === "length") return "max_new_tokens";
  return generation.stopToken === newline ? "newline" : "end_token";
}
