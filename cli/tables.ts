// deno-lint-ignore-file no-console -- a program that prints
/**
 * Writes the published tables: `docs/ruler_2k.md` (all methods at four budgets on the RULER tasks) and
 * `docs/methods_table.md` (rows, bytes and accuracy of each). Records go to `results/tables`, so a run that was stopped
 * goes on where it was.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl } from "@std/path";
import { recordsOfKeys } from "../eval/collect.ts";
import { type Configuration, LanguageModel } from "../eval/engine/mod.ts";
import {
  methodTable,
  rulerBudgetTable,
  TABLE_OPTIONS,
  tableConfigurations,
} from "../eval/method_tables.ts";
import { shortCommit, sourceState } from "../eval/provenance/mod.ts";
import type { EvalRecord } from "../eval/records/mod.ts";
import { type Table, toMarkdown } from "../eval/tables/mod.ts";
import { needleTask, RULER_TASKS, rulerTask, type Task } from "../tasks/mod.ts";
import type { AnyMethod } from "../methods/mod.ts";
import { evaluateCall, openStore } from "./actions/_evaluation.ts";
import { loadMethods } from "./actions/_runtime.ts";
import { integer } from "./commands/_shared.ts";
import { report } from "./main.ts";
import { type Call, UsageError } from "./spec.ts";

const ROOT = fromFileUrl(new URL("..", import.meta.url));
const MODEL = `${ROOT}models/needle-6m`;
const HEADS = `${MODEL}/head_scores.json`;
const SEED = 42;
/** Depths and examples at each, for the needle. */
const DEPTHS = 10, PER_DEPTH = 2;
/** Enough for every answer but a rambling one. */
const NEW_TOKENS = 64;

/** What a call may change, for trials; the published pages are those of the defaults. */
interface Settings {
  /** Prompt length, tokens. */
  length: number;
  /** Examples of each RULER task. With 20, the interval of a task is some 20 points wide each way at worst. */
  examples: number;
  /** Methods; all of them where missing. */
  methods: AnyMethod[] | undefined;
  /** Results folder. */
  results: string;
  /** The page. */
  page: string;
}

/** What the pages say of options. */
const OPTIONS =
  `observation windows of ${TABLE_OPTIONS.observationWindow} and pools ${TABLE_OPTIONS.poolWidth} wide (so that a vote for a needle's key reaches its value) where a method has them, otherwise its defaults`;

/** What a reader would wonder at. */
const SURPRISES =
  "MInference's patterns are given to all heads alike. The first line leaves nothing out at this length. The A-shape (`stream_llm`) reads the first 64 and the last 512 tokens before each query, so the question does not see needles further back while it is read, only the answer's own tokens do; `block_sparse` chooses blocks of 64 tokens by their mean key, in which a needle of ten tokens hardly shows. MiniCache's `compat paper` keeps the few rows exact whose directions differ most, `compat reference` a fixed share.";

/** The call as the evaluation sees it. */
function callOf({ results }: Settings): Call {
  return {
    args: [],
    flags: { batch: 64 },
    rest: [],
    granted: { read: [MODEL], write: [results], native: true },
  };
}

/** A model with the configurations of its table. */
interface Subject {
  model: LanguageModel;
  configurations: Configuration[];
  settings: Settings;
}

/** Runs tasks and returns their records. */
async function run(
  { model, configurations, settings }: Subject,
  tasks: readonly Task[],
  folder: string,
): Promise<EvalRecord[]> {
  const call = callOf(settings);
  const path = `${settings.results}/${folder}`;
  using store = await openStore(call, path);
  const { keys } = await evaluateCall(call, {
    label: folder,
    model,
    runs: tasks.map((task) => ({ task, configurations, seed: SEED })),
    store,
  });
  return await recordsOfKeys(path, keys);
}

function runRuler(subject: Subject): Promise<EvalRecord[]> {
  const { length, examples: count } = subject.settings;
  const tasks = RULER_TASKS.map((name) =>
    rulerTask(name, { length, count, seed: SEED, maxNewTokens: NEW_TOKENS })
  );
  return run(subject, tasks, "ruler");
}

async function rulerPage(subject: Subject): Promise<string> {
  const { length, examples } = subject.settings;
  const started = performance.now();
  const records = await runRuler(subject);
  const minutes = Math.ceil((performance.now() - started) / 60e3);
  console.log(`${records.length} records in ${minutes} min`);
  return page(
    `RULER at ${length} tokens`,
    `The bundled model on ${examples} examples of each of the thirteen tasks, every method at four budgets (rows per layer and head), ${OPTIONS}, at most ${NEW_TOKENS} new tokens. The model was trained on the niah and vt tasks; cwe, fwe and qa are beyond it whatever the cache holds, and say nothing about a method. Written by \`deno task tables ruler\`.`,
    subject,
    rulerBudgetTable(records, subject.configurations),
  );
}

async function methodsPage(subject: Subject): Promise<string> {
  const { length } = subject.settings;
  const ruler = await runRuler(subject);
  const needles = needleTask({
    lengths: [length],
    depths: DEPTHS,
    examplesPerCell: PER_DEPTH,
    seed: SEED,
  });
  const needle = await run(subject, [needles], "needle");
  const alone = new Map<number, EvalRecord[]>();
  for (const size of [length, 2 * length]) {
    const task = rulerTask("niah_single_2", {
      length: size,
      count: 1,
      seed: SEED,
    });
    const records: EvalRecord[] = [];
    for (const one of subject.configurations) {
      const single = { ...subject, configurations: [one] };
      records.push(...await run(single, [task], "alone"));
    }
    alone.set(size, records);
  }
  return page(
    "Methods: rows, bytes, accuracy",
    `The bundled model, every method at four budgets (rows per layer and head), ${OPTIONS}. Accuracy at ${length} tokens: ${
      DEPTHS * PER_DEPTH
    } needles, and the mean over the RULER tasks as in [ruler_2k.md](ruler_2k.md). Written by \`deno task tables methods\`.`,
    subject,
    methodTable({ alone, needle, ruler }, subject.configurations),
  );
}

function page<Row>(
  title: string,
  text: string,
  { model }: Subject,
  table: Table<Row>,
): string {
  const { name } = model.device.info();
  return `# ${title}\n\n${text}\n\nMethods as of commit ${
    shortCommit(sourceState().commit)
  }, model ${model.folder.hash().slice(0, 12)}, ${name}.\n\n${
    toMarkdown(table)
  }\n\n${SURPRISES}\n`;
}

const PAGES = {
  ruler: ["docs/ruler_2k.md", rulerPage],
  methods: ["docs/methods_table.md", methodsPage],
} as const;

async function settingsOf(
  args: string[],
): Promise<[keyof typeof PAGES, Settings]> {
  const { _: names, ...flags } = parseArgs(args, {
    string: ["examples", "methods", "length", "results", "page"],
    unknown: (arg) => {
      if (!arg.startsWith("-")) return true;
      throw new UsageError(
        `Cannot write tables as a flag must be --examples, --methods, --length, --results or --page: it is "${arg}"`,
      );
    },
  });
  const name = String(names[0]);
  if (!Object.hasOwn(PAGES, name) || names.length !== 1) {
    throw new UsageError(
      `Cannot write tables as the argument must be ${
        Object.keys(PAGES).join(" or ")
      }: it is "${names.join(" ")}"`,
    );
  }
  const page = name as keyof typeof PAGES;
  const number = (flag: string, missing: number): number =>
    flags[flag] === undefined ? missing : integer(1)(String(flags[flag]));
  return [page, {
    length: number("length", 2048),
    examples: number("examples", 20),
    methods: flags.methods === undefined
      ? undefined
      : await loadMethods(String(flags.methods)),
    results: String(flags.results ?? `${ROOT}results/tables`),
    page: String(flags.page ?? `${ROOT}${PAGES[page][0]}`),
  }];
}

async function tables(args: string[]): Promise<number> {
  const [name, settings] = await settingsOf(args);
  using model = await LanguageModel.load(MODEL);
  const configurations = tableConfigurations(HEADS, settings.methods);
  const text = await PAGES[name][1]({ model, configurations, settings });
  Deno.writeTextFileSync(settings.page, text);
  console.log(settings.page);
  return 0;
}

if (import.meta.main) {
  try {
    Deno.exit(await tables(Deno.args));
  } catch (error) {
    Deno.exit(report(error));
  }
}
