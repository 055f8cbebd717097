/**
 * What a task comes to before it runs: its examples, their prompts, and which records are missing.
 *
 * @module
 */
import { basename, resolve } from "@std/path";
import { fileOptions, methodFile } from "../methods/mod.ts";
import { ABI_VERSION } from "../ffi/mod.ts";
import type { Example, Task } from "../tasks/types.ts";
import type { Configuration, LanguageModel } from "./engine/mod.ts";
import {
  buildPrompt,
  type BuiltPrompt,
  planPrompt,
  promptModel,
  PROTOCOL_SCHEMA,
  type ProtocolOptions,
} from "./protocol.ts";
import { fileHash, sourceState } from "./provenance/mod.ts";
import {
  contentHash,
  exampleHash,
  type JsonObject,
  type KeyParts,
  recordKey,
  type RecordStore,
} from "./records/mod.ts";

/** A task, the configurations that run it, and how. */
export interface TaskRun {
  /** The task. */
  task: Task;
  /** At least one. */
  configurations: readonly Configuration[];
  /** Seed of the run. */
  seed: number;
  /** How prompts are built; the defaults of {@linkcode PROTOCOL_SCHEMA} where missing. */
  protocol?: ProtocolOptions;
}

/** Names that go into every record. */
export interface RunNames {
  /** Name of the model, for people. */
  modelName: string;
  /** Commit of this program. */
  commit: string;
}

/** A record that is not there yet. */
export interface Missing {
  /** Which configuration it is of. */
  configuration: Configuration;
  /** Everything that decides it. */
  parts: KeyParts;
  /** Key of the parts. */
  key: string;
}

/** An example with records that are missing. */
export interface PreparedExample {
  /** The example. */
  example: Example;
  /** Its prompt; packed, as there may be thousands. */
  prompt: Omit<BuiltPrompt, "ids"> & { ids: Uint32Array };
  /** Tokens that end an answer. */
  stop: number[];
  /** At least one. */
  missing: Missing[];
}

/** A task run with what is left to do. */
export interface PreparedRun {
  /** The run. */
  run: TaskRun;
  /** Examples of the task. */
  total: number;
  /** Those that fall to this process. */
  claimed: number;
  /** Records of these that are finished, of `claimed` times the configurations. */
  finished: number;
  /** Keys of this process's records, finished or not. */
  keys: string[];
  /** What is left. */
  examples: PreparedExample[];
  /** SHA-256 of all examples, and of their prompts' texts, this process's and others'. */
  hashes: { data: string; prompts: string };
}

/** The last token of a newline; generation of one-line answers ends at it. */
export function newlineToken(model: LanguageModel): number | undefined {
  return model.folder.tokenizer?.encode("\n", { specialTokens: false }).at(-1);
}

/** The longest prompts that a task's options ask for, tokens; 0 where its prompts are what they are. */
function longestOf({ recipe }: Task): number {
  const { lengths, length } = recipe.options;
  return Math.max(
    0,
    ...[lengths, length].flat().filter((value) => typeof value === "number"),
  );
}

/**
 * Makes the examples of a task and finds out which records are missing.
 *
 * @param model the model
 * @param run task, configurations, seed
 * @param names names for the records
 * @param store the results folder; its shard decides which examples are this process's
 */
export async function prepareRun(
  model: LanguageModel,
  run: TaskRun,
  names: RunNames,
  store: Pick<RecordStore, "has" | "claims">,
): Promise<PreparedRun> {
  const { task } = run;
  const asked = promptModel(model.folder, names.modelName);
  const protocol = PROTOCOL_SCHEMA.parse(run.protocol ?? {});
  const { tokenizer } = asked;
  const longest = longestOf(task);
  // Before a text of that length is made, which may take longer than anybody waits.
  if (
    longest > asked.maxPositions && !protocol.beyondPositions &&
    protocol.truncate === "refuse"
  ) {
    throw new RangeError(
      `Cannot run task "${task.name}" as its prompts must fit in the model's ${asked.maxPositions} positions: they have ${longest} tokens`,
    );
  }
  const newline = newlineToken(model);
  const modelHash = model.folder.hash();
  const methods = new Map(
    run.configurations.map((one) => [one, methodParts(one)]),
  );
  const examples: PreparedExample[] = [];
  const exampleHashes: string[] = [];
  const prompts: string[] = [];
  const keys: string[] = [];
  let claimed = 0, finished = 0;
  const codec = {
    encode: (text: string) => tokenizer.encode(text, { specialTokens: false }),
    decode: (ids: number[]) =>
      tokenizer.decode(ids, { skipSpecialTokens: true }),
  };
  for (const example of task.examples(codec)) {
    const hash = await exampleHash(task, example);
    exampleHashes.push(hash);
    prompts.push(await contentHash([example.prompt, example.answerPrefix]));
    if (!store.claims(hash)) continue;
    claimed++;
    const stop = [
      ...new Set([
        ...model.folder.generation.stopIds,
        ...(example.stopAtNewline && newline !== undefined ? [newline] : []),
      ]),
    ];
    const plan = planPrompt(asked, example, protocol);
    const missing: Missing[] = [];
    for (const configuration of run.configurations) {
      const parts: KeyParts = {
        model: { name: names.modelName, hash: modelHash },
        example: { id: example.id, hash },
        method: methods.get(configuration)!,
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
        seed: run.seed,
        build: { commit: names.commit, abi: ABI_VERSION },
      };
      const key = await recordKey(parts);
      keys.push(key);
      if (store.has(key)) finished++;
      else missing.push({ configuration, parts, key });
    }
    if (missing.length === 0) continue;
    const { ids, ...facts } = buildPrompt(asked, example, plan);
    const prompt = { ...facts, ids: Uint32Array.from(ids) };
    examples.push({ example, prompt, stop, missing });
  }
  return {
    run,
    total: exampleHashes.length,
    claimed,
    finished,
    keys,
    examples,
    hashes: {
      data: await contentHash(exampleHashes),
      prompts: await contentHash(prompts),
    },
  };
}

/** {@linkcode prepareRun} for several tasks, with the names of this model and program. */
export async function prepareRuns(
  model: LanguageModel,
  runs: readonly TaskRun[],
  store: Pick<RecordStore, "has" | "claims">,
): Promise<PreparedRun[]> {
  const names = {
    modelName: basename(resolve(model.folder.path)),
    commit: sourceState().commit,
  };
  const prepared: PreparedRun[] = [];
  for (const run of runs) {
    prepared.push(await prepareRun(model, run, names, store));
  }
  return prepared;
}

/** What of a configuration decides tokens: its options, and the content of the user's files. */
function methodParts(
  { method, options }: Configuration,
): KeyParts["method"] {
  const source = methodFile(method)?.source;
  const files = Object.entries(fileOptions(options)).map((
    [option, path],
  ): [string, string] => [option, fileHash(path)]);
  return {
    name: method.name,
    options: options as JsonObject,
    ...(source === undefined ? {} : { source }),
    ...(files.length === 0 ? {} : { files: Object.fromEntries(files) }),
  };
}
