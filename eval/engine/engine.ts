/**
 * The generation loop: one prefill per prompt, one compressed cache per configuration, all of them decoded as one batch.
 *
 * With a single configuration the policy acts on each layer as soon as it is computed, so that never more than one
 * layer's full cache is held; with several, the full cache is kept until the last configuration has its fork.
 *
 * @module
 */
import { decode, mergeObservations, type Sequence } from "../../ffi/mod.ts";
import type { Policy } from "../../methods/types.ts";
import type { LanguageModel } from "./language_model.ts";
import {
  type Configuration,
  type Generation,
  type GenerationOptions,
  InvariantError,
} from "./types.ts";

interface Running {
  configuration: Configuration;
  policy: Policy;
  sequence: Sequence;
  compressMs: number;
  tokens: number[];
  logits: Float32Array[];
  stopToken?: number;
  done: boolean;
}

/**
 * Generates from one prompt with each configuration.
 *
 * @param model the model
 * @param prompt token ids, at least one
 * @param configurations at least one; those that alter prefill get a prefill of their own
 * @param options how to generate
 * @returns one generation per configuration, in order
 */
export async function generate(
  model: LanguageModel,
  prompt: readonly number[],
  configurations: readonly Configuration[],
  options: GenerationOptions = {},
): Promise<Generation[]> {
  if (prompt.length === 0) {
    throw new RangeError(
      "Cannot generate as the prompt must have a token: it has 0",
    );
  }
  const policies = configurations.map(({ method, options }) =>
    method.create(options, model.shape)
  );
  model.cache.resetPeak();
  const started = performance.now();
  const running: Running[] = [];
  try {
    for (const group of prefillGroups(configurations)) {
      const members = group.map((i) => ({
        configuration: configurations[i]!,
        policy: policies[i]!,
      }));
      running.push(...await prefill(model, prompt, members, options));
    }
    const prefillMs = performance.now() - started;
    const caches = running.map((one) =>
      checkPromises(model, one, prompt.length)
    );
    for (const one of running) setSampling(one.sequence, options);
    const decodeMsPerToken = await decodeAll(model, running, options);
    const { peakBytes } = model.cache.ledger();
    const order = prefillGroups(configurations).flat();
    const generations = running.map((one, i): Generation => ({
      method: one.configuration.method.name,
      options: one.configuration.options,
      granularity: one.configuration.granularity,
      promptTokens: prompt.length,
      tokens: one.tokens,
      stopReason: one.stopToken === undefined ? "length" : "stop",
      ...(one.stopToken === undefined ? {} : { stopToken: one.stopToken }),
      cache: { ...caches[i]!, peakBytes },
      timing: { prefillMs, compressMs: one.compressMs, decodeMsPerToken },
      ...(options.logits ? { logits: concatenate(one.logits) } : {}),
    }));
    return order.map((_, i) => generations[order.indexOf(i)]!);
  } finally {
    for (const one of running) one.sequence[Symbol.dispose]();
  }
}

/** Indices of configurations by prefill: one group for all that share it, one of its own for each that alters it. */
function prefillGroups(configurations: readonly Configuration[]): number[][] {
  const shared: number[] = [];
  const own: number[][] = [];
  configurations.forEach(({ method }, i) =>
    method.altersPrefill ? own.push([i]) : shared.push(i)
  );
  return shared.length > 0 ? [shared, ...own] : own;
}

async function prefill(
  model: LanguageModel,
  prompt: readonly number[],
  members: readonly { configuration: Configuration; policy: Policy }[],
  options: GenerationOptions,
): Promise<Running[]> {
  const observation = mergeObservations(
    members.map(({ policy }) => policy.observe),
  );
  const signal = options.signal ? { signal: options.signal } : {};
  const layers = model.shape.layers;
  const first = members[0]!;
  const lean = members.length === 1;
  const parent = model.cache.sequence(
    lean ? first.configuration.granularity : "kv_head",
  );
  try {
    const prefill = parent.prefill(model.native, prompt, observation);
    if (lean) {
      let compressMs = 0;
      for (let layer = 0; layer < layers; layer++) {
        await prefill.layers(layer, 1, signal);
        const before = performance.now();
        parent.act(first.policy, layer);
        compressMs += performance.now() - before;
      }
      prefill.end();
      parent.forget();
      return [start(first, parent, compressMs)];
    }
    await prefill.layers(0, layers, signal);
    prefill.end();
    const running: Running[] = [];
    try {
      for (const member of members) {
        const before = performance.now();
        const fork = parent.fork(member.configuration.granularity);
        running.push(start(member, fork, 0));
        for (let layer = 0; layer < layers; layer++) {
          fork.act(member.policy, layer);
        }
        fork.forget();
        running.at(-1)!.compressMs = performance.now() - before;
      }
    } catch (error) {
      for (const one of running) one.sequence[Symbol.dispose]();
      throw error;
    }
    parent[Symbol.dispose]();
    return running;
  } catch (error) {
    parent[Symbol.dispose]();
    throw error;
  }
}

function start(
  member: { configuration: Configuration; policy: Policy },
  sequence: Sequence,
  compressMs: number,
): Running {
  return {
    ...member,
    sequence,
    compressMs,
    tokens: [],
    logits: [],
    done: false,
  };
}

/** Holds what the policy and the ledger promised against what the cache holds. */
function checkPromises(
  model: LanguageModel,
  { configuration, policy, sequence }: Running,
  length: number,
): { rows: number[][]; promisedBytes: number; residentBytes: number } {
  const rows = sequence.rows();
  const { promisedBytes, ownedBytes } = sequence.describe();
  if (promisedBytes !== ownedBytes) {
    throw new InvariantError(
      `Cannot go on as "${configuration.method.name}" must hold what it promised: it promised ${promisedBytes} bytes and holds ${ownedBytes}`,
    );
  }
  rows.forEach((heads, layer) => {
    const held = heads.reduce((sum, n) => sum + n, 0);
    const most = policy.maxRows?.({
      ...model.shape,
      layer,
      length,
      storedHeads: heads.length,
    }) ?? heads.length * length;
    if (held > most) {
      throw new InvariantError(
        `Cannot go on as "${configuration.method.name}" must keep at most ${most} rows in layer ${layer}: it keeps ${held}`,
      );
    }
  });
  return { rows, promisedBytes, residentBytes: ownedBytes };
}

function setSampling(sequence: Sequence, options: GenerationOptions): void {
  sequence.setSampling({
    temperature: options.temperature ?? 0,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    seed: options.seed ?? 0,
    minNewTokens: options.minNewTokens ?? 0,
    stop: options.stop ?? [],
  });
}

async function decodeAll(
  model: LanguageModel,
  running: Running[],
  options: GenerationOptions,
): Promise<number> {
  const maxNewTokens = options.maxNewTokens ?? 128;
  const stop = new Set(options.stop ?? []);
  const started = performance.now();
  let steps = 0;
  while (steps < maxNewTokens) {
    const active = running.filter((one) => !one.done);
    if (active.length === 0) break;
    const count = Math.min(options.chunk ?? 16, maxNewTokens - steps);
    const result = await decode(
      model.native,
      model.cache,
      active.map((one) => one.sequence),
      count,
      {
        logits: options.logits ?? false,
        ...(options.signal ? { signal: options.signal } : {}),
      },
    );
    const vocab = model.native.config.vocab;
    active.forEach((one, i) => {
      const before = one.tokens.length;
      result.tokens[i]!.forEach((token, step) => {
        const at = (step * active.length + i) * vocab;
        if (result.logits) one.logits.push(result.logits.slice(at, at + vocab));
        if (stop.has(token)) {
          one.stopToken = token;
          one.done = true;
        } else one.tokens.push(token);
      });
      options.onTokens?.(one.tokens.slice(before));
    });
    steps += count;
  }
  const decoded = Math.max(1, ...running.map((one) => one.tokens.length));
  return (performance.now() - started) / decoded;
}

function concatenate(parts: Float32Array[]): Float32Array {
  const all = new Float32Array(
    parts.reduce((sum, part) => sum + part.length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
