// deno-lint-ignore-file no-console -- the command line prints
/**
 * What the commands' work has in common: methods with their flags, loading with a progress bar, printing.
 *
 * @module
 */
import { SingleBar } from "cli-progress";
import { configurationKey } from "../../eval/collect.ts";
import {
  type Configuration,
  crossConfigurations,
  LanguageModel,
  type LanguageModelOptions,
} from "../../eval/engine/mod.ts";
import { type AnyMethod, loadMethod, optionFlags } from "../../methods/mod.ts";
import type { Granularity } from "../../methods/types.ts";
import { type Call, type Flags, text, UsageError } from "../spec.ts";

/** Loads the methods of a comma-separated list. */
export async function loadMethods(names: string): Promise<AnyMethod[]> {
  const methods: AnyMethod[] = [];
  for (const name of names.split(",").filter((name) => name !== "")) {
    methods.push(await loadMethod(name));
  }
  if (methods.length === 0) {
    throw new UsageError(
      "Cannot run as --method must name a method: it is empty",
    );
  }
  return methods;
}

/** Reads the options of methods from the arguments that the command did not declare. */
export function methodOptions(
  methods: readonly AnyMethod[],
  rest: readonly string[],
): Record<string, unknown> {
  const given: Record<string, unknown> = {};
  const flags = methods.flatMap((method) => optionFlags(method));
  for (let i = 0; i < rest.length; i++) {
    const [name, inline] = splitFlag(rest[i]!);
    const flag = flags.find((flag) => flag.flag === name);
    if (!flag) {
      const known = [...new Set(flags.map((flag) => flag.flag))];
      throw new UsageError(
        `Cannot use "${
          rest[i]
        }" as it must be a flag of the command or of a chosen method: the methods have ${
          known.join(" ") || "none"
        }`,
      );
    }
    const value = inline ?? rest[++i];
    if (value === undefined) {
      throw new UsageError(
        `Cannot use ${name} as it must have a value: there is none`,
      );
    }
    given[flag.option] = flag.parse(value);
  }
  return given;
}

function splitFlag(argument: string): [string, string | undefined] {
  const at = argument.indexOf("=");
  return at < 0
    ? [argument, undefined]
    : [argument.slice(0, at), argument.slice(at + 1)];
}

/** Methods x budgets of a call, options resolved. */
export async function configurationsOf(
  { flags, rest }: Call,
): Promise<Configuration[]> {
  const methods = await loadMethods(text(flags, "method") ?? "fullkv");
  const budgets = (flags.budget as number[] | undefined) ?? [];
  const given = methodOptions(methods, rest);
  const without = budgets.length === 0 && given.budget === undefined
    ? methods.filter((method) =>
      optionFlags(method).some(({ option, required }) =>
        option === "budget" && required
      )
    )
    : [];
  if (without.length > 0) {
    throw new UsageError(
      `Cannot run ${
        without.map(({ name }) => `"${name}"`).join(", ")
      } as --budget must be given, rows per layer and head, for instance --budget 64: it is missing`,
    );
  }
  const configurations = crossConfigurations(
    methods,
    budgets,
    given,
    (text(flags, "granularity") ?? "kv_head") as Granularity,
  );
  // What comes to the same is taken once.
  return [
    ...new Map(configurations.map((one) => [configurationKey(one), one]))
      .values(),
  ];
}

/** Opens the model of a call, with a progress bar on a terminal. */
export async function openModel(
  flags: Flags,
  extra: Partial<LanguageModelOptions> = {},
): Promise<LanguageModel> {
  const bar = progressBar(
    "loading",
    flags.json === true || flags.quiet === true,
  );
  try {
    return await LanguageModel.load(text(flags, "model")!, {
      device: text(flags, "device") ?? "cpu",
      ...(flags.threads === undefined
        ? {}
        : { threads: flags.threads as number }),
      ...(flags.dtype === undefined
        ? {}
        : { dtype: flags.dtype as "f32" | "f16" | "bf16" }),
      ...(flags.cacheDtype === undefined
        ? {}
        : { cacheDtype: flags.cacheDtype as "f32" | "f16" | "bf16" }),
      onProgress: ({ doneBytes, totalBytes }) => bar.set(doneBytes, totalBytes),
      ...extra,
    });
  } finally {
    bar.stop();
  }
}

/** A progress bar that is silent off a terminal. */
export function progressBar(
  label: string,
  silent = false,
): { set(done: number, total: number): void; stop(): void } {
  if (silent || !Deno.stderr.isTerminal()) return { set() {}, stop() {} };
  const bar = new SingleBar({
    format: `${label} {bar} {percentage}% | {eta_formatted} left`,
    clearOnComplete: true,
  });
  let started = false;
  return {
    set(done, total) {
      if (!started) bar.start(total, 0);
      started = true;
      bar.update(done);
    },
    stop() {
      if (started) bar.stop();
    },
  };
}

/** Prints a value as one JSON document. */
export function printJson(value: unknown): void {
  console.log(
    JSON.stringify(
      value,
      (_, v) => ArrayBuffer.isView(v) ? [...v as Float32Array] : v,
      2,
    ),
  );
}

/** Prints rows as columns of equal width. */
export function printColumns(rows: readonly (readonly string[])[]): void {
  const widths =
    rows[0]?.map((_, column) =>
      Math.max(...rows.map((row) => row[column]?.length ?? 0))
    ) ?? [];
  for (const row of rows) {
    console.log(
      row.map((cell, i) => cell.padEnd(widths[i]!)).join("  ").trimEnd(),
    );
  }
}

/** Bytes in words. */
export function bytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return `${unit === 0 ? n : n.toFixed(n < 10 ? 2 : 1)} ${units[unit]}`;
}
