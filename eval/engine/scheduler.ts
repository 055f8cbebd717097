/**
 * Continuous batching: prompts are read ahead, forked per configuration, and all live sequences of several prompts
 * decode as one batch; when an answer ends, the next fork takes its place.
 *
 * What a prompt and its forks will need is reserved before it is read, so that memory never runs out half-way. A prompt
 * whose full cache does not fit beside a fork is read once per configuration, layer by layer; one that does not fit
 * even so is refused before it is read.
 *
 * @module
 */
import { mergeObservations } from "../../ffi/mod.ts";
import {
  decodeTogether,
  generationOf,
  isDone,
  maxNewTokens,
  type Running,
} from "./decode_loop.ts";
import type { LanguageModel } from "./language_model.ts";
import {
  fullBytes,
  keepsAll,
  type Member,
  oneLayerBytes,
  ownBytes,
  workBytes,
} from "./memory.ts";
import {
  observationOf,
  prefillGroups,
  readLean,
  ReadPrompt,
} from "./prompt.ts";
import type { Generation, Job } from "./types.ts";

/** Options of {@linkcode answerAll}. */
export interface ScheduleOptions {
  /** Sequences that decode together at most. Default 64. */
  slots?: number;
  /** Bytes that caches and work memory may take together, see {@linkcode leastBytes}. Default: no limit. */
  memoryBytes?: number;
  /** Cancels between layers and steps. */
  signal?: AbortSignal;
}

/** One answer of a job. */
export interface Answer<J extends Job> {
  /** The job. */
  job: J;
  /** Which of its configurations. */
  index: number;
  /** What came of it. */
  generation: Generation;
}

/** Members of a job that read its prompt in one prefill. */
interface Unit<J extends Job> {
  job: J;
  indices: number[];
  members: Member[];
}

/** A fork that decodes, and what to report it as. */
interface Live<J extends Job> {
  job: J;
  index: number;
  running: Running;
  /** Gives its reservation back. */
  release: () => void;
}

/**
 * Answers all prompts with all their configurations.
 *
 * @param model the model
 * @param jobs prompts, taken one by one as room comes up
 * @param options slots, memory, cancelling
 * @returns answers as they end, those of one moment together
 * @throws RangeError for a prompt that cannot fit
 */
export async function* answerAll<J extends Job>(
  model: LanguageModel,
  jobs: Iterable<J>,
  options: ScheduleOptions = {},
): AsyncGenerator<Answer<J>[]> {
  using schedule = new Schedule<J>(model, jobs, options);
  for (;;) {
    await schedule.fill();
    const answers = schedule.take();
    if (answers.length > 0) {
      yield answers;
      continue;
    }
    if (schedule.idle) return;
    await schedule.decode();
  }
}

/** Bytes that are spoken for. */
class Reservations {
  readonly #limit: number;
  #used = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Takes bytes when they are there; returns how to give them back. */
  take(bytes: number): (() => void) | undefined {
    if (this.#used + bytes > this.#limit) return undefined;
    this.#used += bytes;
    let held = true;
    return () => {
      if (held) this.#used -= bytes;
      held = false;
    };
  }
}

/** A prompt whose configurations do not all have their fork yet. */
interface Open<J extends Job> {
  unit: Unit<J>;
  read: ReadPrompt;
  next: number;
  /** Full cache and observations: held until the last owner lets go. */
  full: { owners: number; release: () => void };
}

class Schedule<J extends Job> implements Disposable {
  readonly #model: LanguageModel;
  readonly #slots: number;
  readonly #limit: number;
  readonly #signal: AbortSignal | undefined;
  readonly #units: Iterator<Unit<J>>;
  readonly #memory: Reservations;
  #next: Unit<J> | undefined;
  #open: Open<J> | undefined;
  #live: Live<J>[] = [];

  constructor(
    model: LanguageModel,
    jobs: Iterable<J>,
    { slots = 64, memoryBytes = Infinity, signal }: ScheduleOptions,
  ) {
    if (!(slots >= 1)) {
      throw new RangeError(
        `Cannot schedule as slots must be >= 1: slots is ${slots}`,
      );
    }
    this.#model = model;
    this.#slots = slots;
    this.#limit = memoryBytes;
    this.#signal = signal;
    this.#memory = new Reservations(memoryBytes);
    this.#units = unitsOf(model, jobs, memoryBytes);
    model.cache.resetPeak();
  }

  /** Whether nothing is left to do. */
  get idle(): boolean {
    return this.#live.length === 0 && this.#open === undefined &&
      this.#next === undefined;
  }

  /** Reads prompts and makes forks while slots and memory are free. */
  async fill(): Promise<void> {
    while (this.#live.length < this.#slots) {
      if (this.#open) {
        if (!this.#fork(this.#open)) return;
        continue;
      }
      this.#next ??= pull(this.#units);
      if (this.#next === undefined) return;
      const read = this.#next.members.length === 1
        ? await this.#readLean(this.#next)
        : await this.#read(this.#next);
      if (!read) {
        if (this.#live.length > 0) return;
        throw doesNotFit(this.#model, this.#next, this.#limit);
      }
      this.#next = undefined;
    }
  }

  /** Takes the answers that are complete. */
  take(): Answer<J>[] {
    const done = this.#live.filter(({ running }) => isDone(running));
    this.#live = this.#live.filter((one) => !done.includes(one));
    return done.map((one) => {
      const generation = generationOf(one.running);
      this.#end(one);
      return { job: one.job, index: one.index, generation };
    });
  }

  /** Decodes the live sequences a little further. */
  async decode(): Promise<void> {
    await decodeTogether(
      this.#model,
      this.#live.map(({ running }) => running),
      this.#signal,
    );
    this.#notePeak();
  }

  async #readLean(unit: Unit<J>): Promise<boolean> {
    const { job, indices: [index], members } = unit;
    const size = leanBytes(this.#model, unit);
    // With little memory a prefill takes less and longer; not while others could end first.
    const passing = this.#memory.take(size.passing) ??
      (this.#live.length === 0 ? this.#memory.take(size.least) : undefined);
    const release = passing && this.#memory.take(size.kept);
    if (!passing || !release) {
      passing?.();
      return false;
    }
    try {
      const running = await readLean(this.#model, this.#request(job, members));
      this.#live.push({ job, index: index!, running, release });
    } catch (error) {
      release();
      throw error;
    } finally {
      passing();
    }
    this.#notePeak();
    return true;
  }

  async #read(unit: Unit<J>): Promise<boolean> {
    const bytes = unitBytes(this.#model, unit);
    // The largest fork must fit beside it, or nothing would ever let go.
    const probe = this.#memory.take(bytes.full + bytes.largest);
    if (!probe) return false;
    probe();
    const release = this.#memory.take(bytes.full)!;
    try {
      const read = await ReadPrompt.read(
        this.#model,
        this.#request(unit.job, unit.members),
      );
      this.#open = { unit, read, next: 0, full: { owners: 1, release } };
    } catch (error) {
      release();
      throw error;
    }
    this.#notePeak();
    return true;
  }

  /** Makes the next fork of the open prompt; false when it must wait. */
  #fork(open: Open<J>): boolean {
    const { unit, full } = open;
    const member = unit.members[open.next]!;
    const own = this.#memory.take(
      ownBytes(
        this.#model,
        member,
        unit.job.prompt.length,
        maxNewTokens(unit.job.options ?? {}),
      ),
    );
    if (!own) {
      if (this.#live.length > 0) return false;
      throw doesNotFit(this.#model, unit, this.#limit);
    }
    const shares = keepsAll(this.#model, member);
    try {
      this.#live.push({
        job: unit.job,
        index: unit.indices[open.next]!,
        running: open.read.fork(member),
        release: () => {
          own();
          if (shares) letGo(full);
        },
      });
    } catch (error) {
      own();
      throw error;
    }
    if (shares) full.owners++;
    open.next++;
    if (open.next === unit.members.length) this.#close();
    this.#notePeak();
    return true;
  }

  #close(): void {
    this.#open?.read[Symbol.dispose]();
    if (this.#open) letGo(this.#open.full);
    this.#open = undefined;
  }

  #request(job: J, members: Member[]): Parameters<typeof readLean>[1] {
    return {
      prompt: job.prompt,
      members,
      options: job.options ?? {},
      ...(this.#signal ? { signal: this.#signal } : {}),
    };
  }

  /** The pool's peak since the last look belongs to everything that lived then. */
  #notePeak(): void {
    const { peakBytes } = this.#model.cache.ledger();
    for (const { running } of this.#live) {
      running.cache.peakBytes = Math.max(running.cache.peakBytes, peakBytes);
    }
    this.#model.cache.resetPeak();
  }

  #end(one: Live<J>): void {
    one.running[Symbol.dispose]();
    one.release();
  }

  [Symbol.dispose](): void {
    for (const one of this.#live) this.#end(one);
    this.#live = [];
    this.#close();
  }
}

function letGo(full: { owners: number; release: () => void }): void {
  full.owners--;
  if (full.owners === 0) full.release();
}

function pull<T>(items: Iterator<T>): T | undefined {
  const { done, value } = items.next();
  return done ? undefined : value;
}

/** Splits jobs into prefills. */
function* unitsOf<J extends Job>(
  model: LanguageModel,
  jobs: Iterable<J>,
  limit: number,
): Generator<Unit<J>> {
  for (const job of jobs) {
    if (job.prompt.length === 0) {
      throw new RangeError(
        "Cannot generate as the prompt must have a token: it has 0",
      );
    }
    const members = membersOf(model, job);
    const unit = (indices: number[]): Unit<J> => ({
      job,
      indices,
      members: indices.map((i) => members[i]!),
    });
    for (const group of prefillGroups(members)) {
      const shared = unit(group);
      const { full, largest } = unitBytes(model, shared);
      if (full + largest <= limit) yield shared;
      else for (const i of group) yield unit([i]);
    }
  }
}

/** A policy of its own for every configuration. */
function membersOf(model: LanguageModel, job: Job): Member[] {
  return job.configurations.map((configuration): Member => ({
    configuration,
    policy: configuration.method.create(configuration.options, model.shape),
  }));
}

/** Bytes of a shared prefill, and of the largest fork beside it. */
function unitBytes<J extends Job>(
  model: LanguageModel,
  { job, members }: Unit<J>,
): { full: number; largest: number } {
  const length = job.prompt.length;
  const newTokens = maxNewTokens(job.options ?? {});
  return {
    full: fullBytes(model, members[0]!, length) +
      workBytes(model, length, observationOf(members)),
    largest: Math.max(
      ...members.map((member) => ownBytes(model, member, length, newTokens)),
    ),
  };
}

/** Bytes of a prefill for one configuration: what passes, at best and at least, and what stays until the answer ends. */
function leanBytes<J extends Job>(
  model: LanguageModel,
  { job, members }: Unit<J>,
): { passing: number; least: number; kept: number } {
  const length = job.prompt.length;
  const member = members[0]!;
  // Layers that share rows need new pages before their old ones go.
  const layers = member.configuration.method.kind === "merge" ? 2 : 1;
  const rows = layers * oneLayerBytes(model, member, length);
  const observation = mergeObservations([member.policy.observe]);
  return {
    passing: rows + workBytes(model, length, observation),
    least: rows + workBytes(model, length, observation, true),
    kept: ownBytes(model, member, length, maxNewTokens(job.options ?? {})) +
      (keepsAll(model, member) ? fullBytes(model, member, length) : 0),
  };
}

/**
 * Bytes that a job needs at least: read once per configuration, one after the other.
 *
 * @returns the need of the most demanding configuration
 */
export function leastBytes(model: LanguageModel, job: Job): number {
  return Math.max(
    ...membersOf(model, job).map((member, i) => {
      const unit = { job, indices: [i], members: [member] };
      const { least, kept } = leanBytes(model, unit);
      return least + kept;
    }),
  );
}

/** Bytes of a job with all its configurations at once. */
export function sharedBytes(model: LanguageModel, job: Job): number {
  const members = membersOf(model, job);
  const newTokens = maxNewTokens(job.options ?? {});
  const groups = prefillGroups(members).map((indices) => {
    const group = indices.map((i) => members[i]!);
    const unit = { job, indices, members: group };
    return unitBytes(model, unit).full;
  });
  return Math.max(...groups) +
    members.reduce(
      (sum, member) =>
        sum + ownBytes(model, member, job.prompt.length, newTokens),
      0,
    );
}

function doesNotFit<J extends Job>(
  model: LanguageModel,
  unit: Unit<J>,
  limit: number,
): RangeError {
  const { job, members } = unit;
  const { least, kept } = leanBytes(model, unit);
  const { full, largest } = unitBytes(model, unit);
  const need = members.length === 1 ? least + kept : full + largest;
  return new RangeError(
    `Cannot generate as a prompt and its cache must fit in ${
      Math.floor(limit)
    } bytes: ${job.prompt.length} tokens with "${
      members.map(({ configuration }) => configuration.method.name).join(", ")
    }" take ${Math.ceil(need)}`,
  );
}
