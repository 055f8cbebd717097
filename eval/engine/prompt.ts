/**
 * Reading prompts: one prefill for all configurations that may share it, a fork for each; or, for one configuration
 * alone, a prefill that is compressed layer by layer, so that never more than one layer's full cache is held.
 *
 * @module
 */
import {
  MAX_COLUMN_MASSES,
  type MergedObservation,
  mergeObservations,
  type Sequence,
} from "../../ffi/mod.ts";
import type { Running } from "./decode_loop.ts";
import type { LanguageModel } from "./language_model.ts";
import { checkLedger, fullBytes, keptBytes, type Member } from "./memory.ts";
import { type GenerationOptions, InvariantError } from "./types.ts";

/** A prompt and the configurations that read it in one prefill. */
export interface PromptRequest {
  /** Token ids, at least one. */
  prompt: ArrayLike<number>;
  /** At least one. */
  members: readonly Member[];
  /** How to generate. */
  options: GenerationOptions;
  /** Cancels between layers. */
  signal?: AbortSignal;
}

/** What prefill must record for all members. */
export function observationOf(members: readonly Member[]): MergedObservation {
  return mergeObservations(members.map(({ policy }) => policy.observe));
}

/**
 * Indices of members by prefill: those that share one together, as many as one prefill can record for; those that alter
 * it share with their like, or read alone.
 */
export function prefillGroups(members: readonly Member[]): number[][] {
  const groups: { key: string | undefined; indices: number[] }[] = [];
  members.forEach((member, i) => {
    const key = prefillKey(member);
    const open = key === undefined
      ? undefined
      : groups.find((group) =>
        group.key === key &&
        queries([...group.indices.map((k) => members[k]!), member]) <=
          MAX_COLUMN_MASSES
      );
    if (open) open.indices.push(i);
    else groups.push({ key, indices: [i] });
  });
  return groups.map(({ indices }) => indices);
}

/** Members of one key may share a prefill; without one they read alone. */
function prefillKey({ policy, configuration }: Member): string | undefined {
  if (policy.beforeAttention === undefined) return "";
  return policy.prefillKey === undefined
    ? undefined
    : `${configuration.method.name} ${configuration.granularity} ${policy.prefillKey}`;
}

/** Different query sets whose column masses the members ask for. */
function queries(members: readonly Member[]): number {
  return new Set(
    members.flatMap(({ policy }) =>
      (policy.observe?.columnMasses ?? []).map((set) => JSON.stringify(set))
    ),
  ).size;
}

/** A prompt that was read; its full cache lives until it is disposed. */
export class ReadPrompt implements Disposable {
  readonly #model: LanguageModel;
  readonly #request: PromptRequest;
  readonly #parent: Sequence;
  readonly #startedAt: number;
  readonly #prefillMs: number;

  private constructor(
    model: LanguageModel,
    request: PromptRequest,
    parent: Sequence,
    startedAt: number,
  ) {
    this.#model = model;
    this.#request = request;
    this.#parent = parent;
    this.#startedAt = startedAt;
    this.#prefillMs = performance.now() - startedAt;
  }

  /** Reads a prompt and records what its members need. */
  static async read(
    model: LanguageModel,
    request: PromptRequest,
  ): Promise<ReadPrompt> {
    const startedAt = performance.now();
    const { policy, configuration } = request.members[0]!;
    const alters = policy.beforeAttention !== undefined;
    const parent = model.cache.sequence(
      alters ? configuration.granularity : "kv_head",
    );
    try {
      const prefill = parent.prefill(
        model.native,
        request.prompt,
        observationOf(request.members),
        {
          keptBytes: fullBytes(
            model,
            request.members[0]!,
            request.prompt.length,
          ),
        },
      );
      const signal = request.signal ? { signal: request.signal } : {};
      if (!alters) await prefill.layers(0, model.shape.layers, signal);
      for (let layer = 0; alters && layer < model.shape.layers; layer++) {
        await prefill.layers(layer, 1, { ...signal, phase: "project" });
        parent.prepare(policy, layer);
        await prefill.layers(layer, 1, { ...signal, phase: "attend" });
      }
      prefill.end();
      return new ReadPrompt(model, request, parent, startedAt);
    } catch (error) {
      parent[Symbol.dispose]();
      throw error;
    }
  }

  /** Makes a member's sequence: a fork on which its policy acts. */
  fork(member: Member): Running {
    const before = performance.now();
    const sequence = this.#parent.fork(member.configuration.granularity);
    try {
      for (let layer = 0; layer < this.#model.shape.layers; layer++) {
        sequence.act(member.policy, layer);
      }
      sequence.forget();
      return startAnswer(this.#model, this.#request, member, sequence, {
        startedAt: this.#startedAt,
        prefillMs: this.#prefillMs,
        compressMs: performance.now() - before,
      });
    } catch (error) {
      sequence[Symbol.dispose]();
      throw error;
    }
  }

  /** Lets go of the full cache; forks keep what they share. */
  [Symbol.dispose](): void {
    this.#parent[Symbol.dispose]();
  }
}

/** Reads a prompt for its only member, whose policy acts on each layer as soon as it is computed. */
export async function readLean(
  model: LanguageModel,
  request: PromptRequest,
): Promise<Running> {
  const member = request.members[0]!;
  const startedAt = performance.now();
  const sequence = model.cache.sequence(member.configuration.granularity);
  try {
    const kept = keptBytes(model, member, request.prompt.length);
    const prefill = sequence.prefill(
      model.native,
      request.prompt,
      observationOf(request.members),
      kept === undefined ? {} : { keptBytes: kept },
    );
    const signal = request.signal ? { signal: request.signal } : {};
    let compressMs = 0;
    for (let layer = 0; layer < model.shape.layers; layer++) {
      if (member.policy.beforeAttention !== undefined) {
        await prefill.layers(layer, 1, { ...signal, phase: "project" });
        const before = performance.now();
        sequence.prepare(member.policy, layer);
        compressMs += performance.now() - before;
        await prefill.layers(layer, 1, { ...signal, phase: "attend" });
      } else await prefill.layers(layer, 1, signal);
      const before = performance.now();
      sequence.act(member.policy, layer);
      compressMs += performance.now() - before;
    }
    prefill.end();
    sequence.forget();
    return startAnswer(model, request, member, sequence, {
      startedAt,
      prefillMs: performance.now() - startedAt - compressMs,
      compressMs,
    });
  } catch (error) {
    sequence[Symbol.dispose]();
    throw error;
  }
}

function startAnswer(
  model: LanguageModel,
  { prompt, members, options }: PromptRequest,
  member: Member,
  sequence: Sequence,
  times: Pick<Running, "startedAt" | "prefillMs" | "compressMs">,
): Running {
  const cache = checkPromises(model, member, sequence, prompt.length);
  options.inspect?.(member.configuration, sequence);
  sequence.setSampling({
    temperature: options.temperature ?? 0,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    seed: options.seed ?? 0,
    minNewTokens: options.minNewTokens ?? 0,
    stop: options.stop ?? [],
  });
  return {
    ...member,
    ...times,
    sequence,
    options,
    promptTokens: prompt.length,
    sharedPrefill: members.length,
    cache: { ...cache, peakBytes: 0 },
    decodeMs: 0,
    batch: 0,
    tokens: [],
    logits: [],
    [Symbol.dispose]: () => sequence[Symbol.dispose](),
  };
}

/** Holds what the policy and the ledger promised against what the cache holds. */
function checkPromises(
  model: LanguageModel,
  member: Member,
  sequence: Sequence,
  length: number,
): { rows: number[][]; promisedBytes: number; residentBytes: number } {
  const { configuration, policy } = member;
  const rows = sequence.rows();
  const bytes = checkLedger(member, sequence);
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
  return { rows, ...bytes };
}
