/**
 * Flags that several commands share.
 *
 * @module
 */
import {
  type Command,
  InvalidArgumentError,
  Option,
} from "@commander-js/extra-typings";
import type { ProtocolOptions } from "../../eval/protocol.ts";
import {
  type Call,
  type Flags,
  type Grants,
  methodPaths,
  paths,
  text,
  UsageError,
} from "../spec.ts";

/** Parses an integer within bounds. */
export function integer(
  min: number,
  max = 2 ** 32 - 1,
): (value: string) => number {
  return (value) => {
    const number = Number(value);
    const whole = value.trim() !== "" && Number.isInteger(number);
    if (!whole || number < min || number > max) {
      throw new InvalidArgumentError(
        `must be an integer from ${min} to ${max}`,
      );
    }
    return number;
  };
}

/** Parses a number within bounds. */
export function real(min: number, max = Infinity): (value: string) => number {
  return (value) => {
    const number = Number(value);
    if (value.trim() === "" || !(number >= min && number <= max)) {
      throw new InvalidArgumentError(
        max === Infinity
          ? `must be a number >= ${min}`
          : `must be a number from ${min} to ${max}`,
      );
    }
    return number;
  };
}

/** Parses a comma-separated list of integers of at least `min`. */
export function integers(min: number): (value: string) => number[] {
  const one = integer(min);
  return (value) => value.split(",").map((part) => one(part));
}

/** `--model`, `--device`, `--threads`, `--dtype`, `--cache-dtype`. */
export function modelFlags(command: Command, required = true): void {
  const model = new Option("--model <dir>", "Hugging Face model folder");
  if (required) model.makeOptionMandatory();
  command
    .addOption(model)
    .option("--device <name>", "cpu, cuda or cuda:N", "cpu")
    .addOption(
      new Option(
        "--threads <n>",
        "CPU threads (default: all that the affinity mask allows)",
      ).argParser(integer(1)),
    )
    .addOption(
      new Option(
        "--dtype <type>",
        "type of the weights in memory (default: the file's)",
      )
        .choices(["f32", "f16", "bf16"] as const),
    )
    .addOption(
      new Option(
        "--cache-dtype <type>",
        "type of the cache's rows (default: the weights')",
      )
        .choices(["f32", "f16", "bf16"] as const),
    );
}

/** Parses bytes: a number, alone or with KiB, MiB, GiB or TiB (or K, M, G, T). */
export function byteSize(value: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:iB)?)?$/.exec(value);
  const bytes = match
    ? Number(match[1]) * 1024 ** (" KMGT".indexOf(match[2] ?? " "))
    : NaN;
  if (!(bytes >= 1)) {
    throw new InvalidArgumentError("must be bytes, for instance 8GiB");
  }
  return Math.floor(bytes);
}

/** `--shard`, `--batch`, `--memory`: how an evaluation shares work and memory. */
export function scheduleFlags(command: Command): void {
  command
    .option(
      "--shard <i/n>",
      "do the i-th of n shares, with other processes on the same results folder",
    )
    .addOption(
      new Option("--batch <n>", "sequences that decode together at most")
        .argParser(integer(1)).default(64),
    )
    .addOption(
      new Option(
        "--memory <bytes>",
        "memory for caches and activations, for instance 8GiB (default: four fifths of what is available)",
      ).argParser(byteSize),
    );
}

/**
 * What an evaluation needs: model, methods, results folder, and the files and folders of the user that its flags name.
 */
export function evaluationGrants({ flags }: Call, named: string[]): Grants {
  return {
    read: paths(
      text(flags, "model"),
      ...named.map((name) => text(flags, name)),
      ...methodPaths(text(flags, "method")),
    ),
    write: paths(text(flags, "out")),
    sys: ["systemMemoryInfo"],
    native: true,
    device: deviceOf(flags),
  };
}

/** `--granularity`. */
export function granularityFlag(command: Command): void {
  command.addOption(
    new Option("--granularity <layout>", "what one stored head is")
      .choices(["kv_head", "query_head"] as const).default("kv_head" as const),
  );
}

/** Flags of every benchmark: methods, budgets, results folder, output. */
export function benchmarkFlags(command: Command, out: string): void {
  command
    .option(
      "--method <names>",
      "methods, comma-separated: names or files",
      "fullkv,snapkv,streamingllm",
    )
    .addOption(
      new Option("--budget <n>", "rows per layer and head, comma-separated")
        .argParser(integers(1)),
    )
    .option("--out <dir>", "results folder: records, tables, pictures", out)
    .option("--quiet", "no progress bar", false);
  scheduleFlags(command);
}

/**
 * Flags of the prompt protocol; the benchmark's own defaults are shown in the help. Without defaults, what is not given
 * stays undefined.
 */
export function protocolFlags(
  command: Command,
  defaults?: { truncate: "middle" | "refuse"; minNewTokens: number },
): void {
  const preset = <T extends Option>(
    option: T,
    value: unknown,
    words?: string,
  ): Option => defaults ? option.default(value, words) : option;
  command
    .addOption(
      preset(
        new Option("--chat <form>", "chat form of prompts").choices(
          ["auto", "always", "never", "reference"] as const,
        ),
        "auto",
        "auto: the model's template, where it has one and the prompt is no text to be continued",
      ),
    )
    .addOption(
      preset(
        new Option(
          "--max-prompt-tokens <n>",
          "longest prompt: a number, model (its positions less the new tokens) or reference (KVCache-Factory's table)",
        ).argParser(promptLimit),
        "model",
      ),
    )
    .addOption(
      preset(
        new Option("--truncate <how>", "what happens to longer prompts")
          .choices(["middle", "refuse"] as const),
        defaults?.truncate,
      ),
    )
    .addOption(
      preset(
        new Option(
          "--min-new-tokens <n>",
          "new tokens before an answer may end",
        ).argParser(integer(0)),
        defaults?.minNewTokens,
      ),
    )
    .addOption(
      preset(
        new Option(
          "--beyond-positions",
          "allow prompts beyond the positions that the model was made for",
        ),
        false,
      ),
    );
}

function promptLimit(value: string): number | string {
  return value === "model" || value === "reference" ? value : integer(2)(value);
}

/** The prompt protocol of a call. */
export function protocolOf(flags: Flags): ProtocolOptions {
  const { chat, maxPromptTokens, truncate, minNewTokens, beyondPositions } =
    flags;
  return {
    chat,
    maxPromptTokens,
    truncate,
    minNewTokens,
    beyondPositions,
  } as ProtocolOptions;
}

/** The device name of a call. */
export function deviceOf(flags: Flags): string {
  const device = text(flags, "device") ?? "cpu";
  if (!/^(cpu|cuda(:\d+)?)$/.test(device)) {
    throw new UsageError(
      `Cannot use --device as it must be cpu, cuda or cuda:N: it is "${device}"`,
    );
  }
  return device;
}
