// deno-lint-ignore-file no-console -- the command line prints
import { fileOptions, isMethodPath } from "../../methods/mod.ts";
import type { LanguageModel } from "../../eval/engine/mod.ts";
import { sourceState } from "../../eval/provenance/mod.ts";
import {
  type EvalRecord,
  readRecords,
  readRunMeta,
} from "../../eval/records/mod.ts";
import {
  type Origin,
  originsOf,
  type Replay,
  replayRecord,
} from "../../eval/replay.ts";
import { taskPaths } from "../../tasks/mod.ts";
import { type Call, type Grants, text, UsageError } from "../spec.ts";
import { openModel, printJson } from "./_runtime.ts";

/** A record to do again. */
interface Item {
  record: EvalRecord;
  origins: Origin[];
}

/** `kvf replay`. */
export async function replayAction(call: Call): Promise<number> {
  const { args: [dir, key], flags } = call;
  const records = await chosenRecords(dir!, key, flags.limit as number);
  const starts = [...readRunMeta(dir!)];
  const model = text(flags, "model");
  const items = records.map((record): Item => {
    const origins = originsOf(record, starts).map((origin) =>
      model === undefined ? origin : { ...origin, model }
    );
    return { record, origins };
  });
  if (flags.printGrants === true) {
    console.log(JSON.stringify(grantsOf(dir!, items)));
    return 0;
  }
  const { commit } = sourceState();
  const replays: { record: EvalRecord; replay: Replay }[] = [];
  for (const group of groupsOf(items)) {
    using model = await open(call, group[0]!);
    for (const { record, origins } of group) {
      const replay = await replayRecord(model, record, origins, commit);
      replays.push({ record, replay });
      if (!flags.json) print(record, replay);
    }
  }
  const same = replays.filter(({ replay }) => replay.same).length;
  if (flags.json) {
    printJson({
      replayed: replays.length,
      same,
      records: replays.map(({ record, replay }) => ({
        key: record.key,
        ...replay,
      })),
    });
  } else console.log(`${same} of ${replays.length} gave the same tokens`);
  return same === replays.length ? 0 : 1;
}

/** The record of a key, or some of all. */
async function chosenRecords(
  dir: string,
  key: string | undefined,
  limit: number,
): Promise<EvalRecord[]> {
  const all: EvalRecord[] = [];
  for await (const record of readRecords(dir)) {
    if (record.key.startsWith(key ?? "")) all.push(record);
  }
  if (all.length === 0) {
    throw new UsageError(
      `Cannot replay as there must be a record${
        key === undefined ? "" : ` whose key begins with "${key}"`
      }: there is none in "${dir}"`,
    );
  }
  if (key !== undefined && all.length > 1) {
    throw new UsageError(
      `Cannot replay as one record must have the key: ${all.length} begin with "${key}"`,
    );
  }
  // Keys are hashes: the lowest ones are a sample that is the same every time.
  return all.toSorted((a, b) => a.key < b.key ? -1 : 1).slice(0, limit);
}

function grantsOf(dir: string, items: readonly Item[]): Grants {
  return {
    read: [
      ...new Set([
        dir,
        ...items.flatMap(({ record }) =>
          Object.values(fileOptions(record.method.options))
        ),
        ...items.flatMap(({ origins }) => origins).flatMap((origin) => [
          origin.model,
          ...taskPaths(origin.recipe.options),
          ...(isMethodPath(origin.method) ? [origin.method] : []),
        ]),
      ]),
    ],
    native: true,
    device: String(items[0]!.record.generation.device ?? "cpu"),
  };
}

/** Records that one opened model can do again. */
function groupsOf(items: readonly Item[]): Item[][] {
  return [
    ...Map.groupBy(items, ({ record, origins }) => {
      const { device, dtype, cacheDtype } = record.generation;
      return JSON.stringify([origins[0]!.model, device, dtype, cacheDtype]);
    }).values(),
  ];
}

function open(
  { flags }: Call,
  { record, origins }: Item,
): Promise<LanguageModel> {
  const { device, dtype, cacheDtype } = record.generation;
  return openModel({
    ...{ model: origins[0]!.model, device, dtype, cacheDtype },
    ...{ json: flags.json, threads: flags.threads },
  });
}

function print(record: EvalRecord, replay: Replay): void {
  const { firstDifference: at, tokens } = replay;
  const name = `${
    record.key.slice(0, 12)
  } ${record.example.id} ${record.method.name} ${
    record.method.options.budget ?? ""
  }`.trimEnd();
  const outcome = replay.same
    ? `the same ${record.tokens.length} tokens`
    : tokens === undefined
    ? "could not be run"
    : `differs from token ${at} on: ${record.tokens[at!] ?? "the end"} became ${
      tokens[at!] ?? "the end"
    }`;
  console.log(`${name}: ${outcome}`);
  for (const { what, record: before, now } of replay.differences) {
    console.log(
      `  ${what}: was ${JSON.stringify(before)}, is ${JSON.stringify(now)}`,
    );
  }
}
