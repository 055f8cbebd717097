import { Option } from "@commander-js/extra-typings";
import { type CommandSpec, methodPaths, text } from "../spec.ts";
import {
  integer,
  integers,
  modelFlags,
  protocolFlags,
  scheduleFlags,
} from "./_shared.ts";

/** `kvf sweep`: models x tasks x methods x budgets x options x seeds. */
export const sweep: CommandSpec = {
  path: ["sweep"],
  methodFlags: true,
  declare(command) {
    command.description(
      "Models x tasks x methods x budgets x options x seeds, one prefill per example for all of them",
    ).argument("[plan]", "a plan, JSON or TypeScript, in place of the flags");
    modelFlags(command, false);
    command
      .option(
        "--tasks <names>",
        "tasks, comma-separated: needle, names of RULER tasks, ruler/*, longbench/<set>, longbench/* (default: needle)",
      )
      .addOption(
        new Option(
          "--lengths <n>",
          "prompt lengths, where tasks have one (default: 1024,2048)",
        ).argParser(integers(64)),
      )
      .addOption(
        new Option(
          "--limit <n>",
          "examples of each task and length (default: 10)",
        ).argParser(integer(1)),
      )
      .option("--data <path>", "LongBench's data, a folder or its zip archive")
      .option(
        "--method <names>",
        "methods, comma-separated: names or files (default: fullkv,snapkv,streamingllm)",
      )
      .addOption(
        new Option(
          "--budget <n>",
          "rows per layer and head, comma-separated (default with the default methods: 64,128,256)",
        ).argParser(integers(1)),
      )
      .option(
        "--granularity <layouts>",
        "what one stored head is, comma-separated: kv_head, query_head (default: kv_head)",
      )
      .addOption(
        new Option(
          "--seeds <n>",
          "seeds of the examples, comma-separated (default: 42)",
        ).argParser(integers(0)),
      )
      .option("--out <dir>", "results folder (default: the plan's)")
      .option(
        "--dry-run",
        "tell examples, records and memory, and do nothing",
        false,
      )
      .option("--quiet", "no progress", false)
      .option("--slurm <file>", "write a Slurm array job in place of running")
      .addOption(
        new Option("--shards <n>", "tasks of the array job").argParser(
          integer(1),
        ).default(4),
      )
      .addOption(
        new Option(
          "--sbatch <option>",
          "a further option of the job, for instance --sbatch=--time=2:00:00; may be repeated",
        ).argParser((value: string, all: string[]) => [...all, value])
          .default([] as string[], "none"),
      )
      .option("--submit", "submit the job with sbatch", false)
      .addOption(new Option("--print-grants").hideHelp().default(false));
    scheduleFlags(command);
    protocolFlags(command);
    command.addHelpText(
      "after",
      `
Options of methods are flags as well: see kvf methods. A sweep that was stopped goes on where it was.
The schema of plans is eval/sweep/plan.schema.json.

Example:
  kvf sweep --model models/needle-6m --tasks needle,vt --method fullkv,snapkv --budget 64,128 --dry-run
  kvf sweep plan.json --out results/mine
  kvf sweep plan.json --slurm job.sh --shards 8 --sbatch=--time=2:00:00 --submit`,
    );
  },
  // What runs stands in the plan, so the program is asked for what it needs, with nothing but the plan to read.
  probe: ({ args, flags }) => ({
    read: [...args, ...methodPaths(text(flags, "method"))],
  }),
  json: {
    out: "results folder",
    "shard?": "this process's share",
    "records?": "records of this process, old and new",
    "made?": "records computed now",
    "finished?": "records that were there",
    "configurations?": "with --dry-run: labels",
    "tasks?":
      "with --dry-run: examples and records of each model, task and seed",
    "models?": "with --dry-run: bytes of memory needed and allowed",
    "job?": "with --slurm: the script",
    "submitted?": "with --slurm: what sbatch said, or null",
  },
  grants: ({ flags }) =>
    flags.slurm === undefined
      ? { sys: ["systemMemoryInfo"] }
      : { run: flags.submit === true ? ["sbatch"] : [] },
  run: async (call) => (await import("../actions/sweep.ts")).sweepAction(call),
};
