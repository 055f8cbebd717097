/**
 * Slurm array jobs: one task of the array per shard, all on one results folder.
 *
 * @module
 */

/** What an array job runs. */
export interface SlurmJob {
  /** Name of the job. */
  name: string;
  /** Shards: tasks of the array. */
  shards: number;
  /** Folder in which the command is started. */
  cwd: string;
  /** The project's configuration file. */
  config: string;
  /** Arguments of `kvf`, without `--shard`. */
  args: readonly string[];
  /** Where the jobs' output goes. */
  logs: string;
  /** Further `#SBATCH` options, for instance `--partition=gpu`. */
  options: readonly string[];
}

/**
 * The job's script. A job that is stopped and queued again goes on where it was.
 *
 * @throws RangeError for an option that is no single `--name` or `--name=value`
 */
export function slurmScript(job: SlurmJob): string {
  for (const option of job.options) {
    if (/^--?[A-Za-z][\w-]*(=\S.*)?$/.test(option) && !/[\r\n]/.test(option)) {
      continue;
    }
    throw new RangeError(
      `Cannot write job as an option must have the form --name or --name=value: ${
        JSON.stringify(option)
      }`,
    );
  }
  const directives = [
    `--job-name=${job.name}`,
    `--array=1-${job.shards}`,
    `--output=${job.logs}/slurm-%A_%a.log`,
    "--requeue",
    ...job.options,
  ];
  const command = ["deno", "task", "--quiet", "--config", job.config, "kvf"];
  return [
    "#!/bin/bash",
    ...directives.map((directive) => `#SBATCH ${directive}`),
    "",
    "# One shard per task of the array; finished records are never computed again.",
    "set -euo pipefail",
    `cd ${quoted(job.cwd)}`,
    `exec ${[...command, ...job.args].map(quoted).join(" ")} \\`,
    `  --shard "$SLURM_ARRAY_TASK_ID/${job.shards}"`,
    "",
  ].join("\n");
}

/** A word for the shell. */
function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word)
    ? word
    : `'${word.replaceAll("'", `'\\''`)}'`;
}
