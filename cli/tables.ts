// deno-lint-ignore-file no-console -- a program that prints
/**
 * Writes the published tables: `docs/ruler_2k.md` (all methods at four budgets on the RULER tasks) and
 * `docs/methods_table.md` (rows, bytes and accuracy of each). Records go to `results/tables`, so a run that was stopped
 * goes on where it was.
 *
 * @module
 */
import { fromFileUrl } from "@std/path";
import { recordsOfKeys } from "../eval/collect.ts";
import { type Configuration, LanguageModel } from "../eval/engine/mod.ts";
import {
  methodTable,
  rulerBudgetTable,
  TABLE_OPTIONS,
  tableConfigurations,
} from "../eval/method_tables.ts";
import { sourceState } from "../eval/provenance/mod.ts";
import type { EvalRecord } from "../eval/records/mod.ts";
import { type Table, toMarkdown } from "../eval/tables/mod.ts";
import { needleTask, RULER_TASKS, rulerTask, type Task } from "../tasks/mod.ts";
import { evaluateCall, openStore } from "./actions/_evaluation.ts";
import { report } from "./main.ts";
import { type Call, UsageError } from "./spec.ts";

const ROOT = fromFileUrl(new URL("..", import.meta.url));
const MODEL = `${ROOT}models/needle-6m`;
const HEADS = `${MODEL}/head_scores.json`;
const RESULTS = `${ROOT}results/tables`;
const LENGTH = 2048;
const SEED = 42;
/** Examples of each RULER task: an interval of a share is then about +-20 points at worst, that of the mean +-5. */
const EXAMPLES = 20;
/** Depths and examples at each, for the needle. */
const DEPTHS = 10, PER_DEPTH = 2;
/** Enough for every answer but a rambling one. */
const NEW_TOKENS = 64;

/** What the pages say of options. */
const OPTIONS =
  `observation windows of ${TABLE_OPTIONS.observationWindow} and pools ${TABLE_OPTIONS.poolWidth} wide (so that a vote for a needle's key reaches its value) where a method has them, otherwise its defaults`;

const CALL: Call = {
  args: [],
  flags: { batch: 64 },
  rest: [],
  granted: { read: [MODEL], write: [RESULTS], native: true },
};

/** Runs tasks and returns their records. */
async function run(
  model: LanguageModel,
  tasks: readonly Task[],
  configurations: readonly Configuration[],
  folder: string,
): Promise<EvalRecord[]> {
  using store = await openStore(CALL, folder);
  const { keys } = await evaluateCall(CALL, {
    label: tasks.length === 1 ? tasks[0]!.name : "ruler",
    model,
    modelPath: MODEL,
    runs: tasks.map((task) => ({ task, configurations, seed: SEED })),
    store,
  });
  return await recordsOfKeys(folder, keys);
}

function runRuler(
  model: LanguageModel,
  configurations: readonly Configuration[],
): Promise<EvalRecord[]> {
  const tasks = RULER_TASKS.map((name) =>
    rulerTask(name, {
      length: LENGTH,
      count: EXAMPLES,
      seed: SEED,
      maxNewTokens: NEW_TOKENS,
    })
  );
  return run(model, tasks, configurations, `${RESULTS}/ruler`);
}

async function rulerPage(
  model: LanguageModel,
  configurations: readonly Configuration[],
): Promise<string> {
  const started = performance.now();
  const records = await runRuler(model, configurations);
  const minutes = Math.ceil((performance.now() - started) / 60e3);
  console.log(`${records.length} records in ${minutes} min`);
  return page(
    "RULER at 2048 tokens",
    `The bundled model on ${EXAMPLES} examples of each of the thirteen tasks, every method at four budgets (rows per layer and head), ${OPTIONS}, at most ${NEW_TOKENS} new tokens. The model was trained on the niah and vt tasks; cwe, fwe and qa are beyond it whatever the cache holds, and say nothing about a method. Written by \`deno task tables ruler\`.`,
    model,
    rulerBudgetTable(records, configurations),
  );
}

async function methodsPage(
  model: LanguageModel,
  configurations: readonly Configuration[],
): Promise<string> {
  const ruler = await runRuler(model, configurations);
  const needle = await run(
    model,
    [needleTask({
      lengths: [LENGTH],
      depths: DEPTHS,
      examplesPerCell: PER_DEPTH,
      seed: SEED,
    })],
    configurations,
    `${RESULTS}/needle`,
  );
  const alone = new Map<number, EvalRecord[]>();
  for (const length of [LENGTH, 2 * LENGTH]) {
    const task = rulerTask("niah_single_2", { length, count: 1, seed: SEED });
    const records: EvalRecord[] = [];
    for (const one of configurations) {
      records.push(...await run(model, [task], [one], `${RESULTS}/alone`));
    }
    alone.set(length, records);
  }
  return page(
    "Methods: rows, bytes, accuracy",
    `The bundled model, every method at four budgets (rows per layer and head), ${OPTIONS}. Accuracy at ${LENGTH} tokens: ${
      DEPTHS * PER_DEPTH
    } needles, and the mean over the RULER tasks as in [ruler_2k.md](ruler_2k.md). Written by \`deno task tables methods\`.`,
    model,
    methodTable({ alone, needle, ruler }, configurations),
  );
}

function page<Row>(
  title: string,
  text: string,
  model: LanguageModel,
  table: Table<Row>,
): string {
  const { name } = model.device.info();
  return `# ${title}\n\n${text}\n\nCommit ${
    sourceState().commit.slice(0, 12)
  }, model ${model.folder.hash().slice(0, 12)}, ${name}.\n\n${
    toMarkdown(table)
  }`;
}

const PAGES = {
  ruler: ["docs/ruler_2k.md", rulerPage],
  methods: ["docs/methods_table.md", methodsPage],
} as const;

async function tables(args: string[]): Promise<number> {
  const [name = "", ...rest] = args;
  if (!Object.hasOwn(PAGES, name) || rest.length > 0) {
    throw new UsageError(
      `Cannot write tables as the argument must be ${
        Object.keys(PAGES).join(" or ")
      }: it is "${args.join(" ")}"`,
    );
  }
  const [file, make] = PAGES[name as keyof typeof PAGES];
  using model = await LanguageModel.load(MODEL);
  const text = await make(model, tableConfigurations(HEADS));
  Deno.writeTextFileSync(`${ROOT}${file}`, text);
  console.log(file);
  return 0;
}

if (import.meta.main) {
  try {
    Deno.exit(await tables(Deno.args));
  } catch (error) {
    Deno.exit(report(error));
  }
}
