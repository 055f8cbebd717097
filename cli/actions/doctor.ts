// deno-lint-ignore-file no-console -- the command line prints
import { CHILD_ENV } from "../../tasks/_child.ts";
import { Device } from "../../ffi/mod.ts";
import config from "../../deno.json" with { type: "json" };
import { type Call, text, UsageError } from "../spec.ts";
import { entriesOf, KINDS, type PermissionSet, REASONS } from "../_reasons.ts";
import { bytes, printColumns, printJson } from "./_runtime.ts";

interface Check {
  name: string;
  ok: boolean;
  detail: string;
}

/** `kvf doctor`. */
export async function doctorAction({ flags }: Call): Promise<number> {
  const task = text(flags, "permissions");
  if (task !== undefined) return printPermissions(task, flags.json === true);
  const checks: Check[] = [
    await version("C compiler", "cc", ["--version"]),
    library("CPU library", "cpu"),
    await version("nvcc (optional)", "nvcc", ["--version"]),
  ];
  const ready = checks.slice(0, 2).every(({ ok }) => ok);
  if (flags.json) printJson({ ready, checks, permissions: null });
  else {printColumns(
      checks.map(({ name, ok, detail }) => [ok ? "ok" : "--", name, detail]),
    );}
  return ready ? 0 : 1;
}

async function version(
  name: string,
  program: string,
  args: string[],
): Promise<Check> {
  try {
    const { stdout, success } = await new Deno.Command(program, {
      env: CHILD_ENV,
      args,
      stderr: "null",
    }).output();
    const lines = new TextDecoder().decode(stdout).trim().split("\n");
    return {
      name,
      ok: success,
      detail: (program === "nvcc" ? lines.at(-1) : lines[0]) ?? "",
    };
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotCapable
    ) {
      return { name, ok: false, detail: `${program} was not found` };
    }
    throw error;
  }
}

function library(name: string, kind: "cpu" | "cuda"): Check {
  try {
    using device = new Device({ kind });
    const info = device.info();
    const memory = info.totalBytes > 0
      ? `, ${bytes(info.freeBytes)} of ${bytes(info.totalBytes)} free`
      : "";
    return { name, ok: true, detail: `${info.name}${memory}; ${device.path}` };
  } catch (error) {
    return { name, ok: false, detail: (error as Error).message };
  }
}

/** Prints what a task of deno.json may do. */
function printPermissions(task: string, json: boolean): number {
  const tasks = config.tasks as Record<
    string,
    { command: string; description: string }
  >;
  const sets = config.permissions as unknown as Record<string, PermissionSet>;
  const found = tasks[task];
  if (!found) {
    throw new UsageError(
      `Cannot print permissions as the task must be one of ${
        Object.keys(tasks).join(", ")
      }: it is "${task}"`,
    );
  }
  const named = /-P=(\S+)/.exec(found.command)?.[1] ??
    (/deno test .*-P/.test(found.command) ? "test" : undefined);
  const set = named === undefined ? {} : sets[named] ?? {};
  const permissions = entriesOf(set).map(({ kind, entry }) => ({
    kind,
    entry,
    reason: REASONS[`${kind} ${entry}`] ?? "",
  }));
  if (json) {
    printJson({
      ready: null,
      checks: [],
      permissions: {
        task,
        description: found.description,
        set: named ?? null,
        entries: permissions,
      },
    });
    return 0;
  }
  console.log(`${task}: ${found.description}\n`);
  printColumns(
    permissions.length > 0
      ? permissions.map(({ kind, entry, reason }) => [
        `may ${KINDS[kind] ?? kind}`,
        entry,
        reason,
      ])
      : [["may do nothing beyond computing"]],
  );
  console.log("\nAnything else is refused by Deno, the network included.");
  return 0;
}
