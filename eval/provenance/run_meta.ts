/**
 * The facts that every run writes down: program, machine, permissions, options, hashes.
 *
 * Permissions: read of the library file; where they are given, sys `systemMemoryInfo` and what {@linkcode sourceState}
 * reads.
 *
 * @module
 */
import { createHash } from "node:crypto";
import config from "../../deno.json" with { type: "json" };
import { ABI_VERSION, type Device } from "../../ffi/mod.ts";
import {
  formatShard,
  type JsonObject,
  RECORD_SCHEMA_VERSION,
  type RunMeta,
  type Shard,
} from "../records/mod.ts";
import type { SourceState } from "./source_state.ts";

/** What a run knows of itself. */
export interface RunFacts {
  /** Where it runs. */
  device: Device;
  /** Which of the processes that share the folder. */
  shard: Shard;
  /** Sources of the program. */
  source: SourceState;
  /** Permissions that it was started for, see {@linkcode grantedPermissions}. */
  permissions: string[];
  /** All options, resolved. */
  options: JsonObject;
  /** SHA-256 of model, data and prompts; that of the library is added. */
  hashes: { [name: string]: string };
}

/** Writes the facts of a run down. */
export function runMeta(facts: RunFacts): RunMeta {
  const { device, shard, source, permissions, options, hashes } = facts;
  const info = device.info();
  const gpu = info.kind === "cuda";
  return {
    schema: RECORD_SCHEMA_VERSION,
    startedAt: new Date().toISOString(),
    shard: formatShard(shard),
    commit: source.commit,
    dirty: source.dirty,
    versions: {
      kvf: config.version,
      abi: String(ABI_VERSION),
      ...Deno.version,
    },
    hardware: {
      os: Deno.build.os,
      arch: Deno.build.arch,
      cpu: gpu ? Deno.build.arch : info.name,
      cores: navigator.hardwareConcurrency,
      memoryBytes: systemMemory(),
      gpu: gpu ? info.name : null,
      gpuMemoryBytes: gpu ? info.totalBytes : null,
    },
    permissions,
    options,
    hashes: { ...hashes, library: fileHash(device.path) },
  };
}

/** Memory of the machine, bytes; null where it may not be asked for. */
function systemMemory(): number | null {
  const kind = "systemMemoryInfo";
  return isGranted({ name: "sys", kind })
    ? Deno.systemMemoryInfo().total
    : null;
}

/** SHA-256 of a file. */
export function fileHash(path: string): string {
  return createHash("sha256").update(Deno.readFileSync(path)).digest("hex");
}

/** Permissions that may be asked for, by kind. */
export type AskedPermissions = {
  [Kind in "read" | "write" | "ffi" | "run" | "env" | "sys"]?:
    readonly string[];
};

/**
 * Which permissions this process has: whole kinds, and of the rest those that were asked for.
 *
 * @returns for instance `["net=none", "read=models/needle-6m", ...]`
 */
export function grantedPermissions(asked: AskedPermissions): string[] {
  const facts: string[] = [];
  const kinds = ["read", "write", "ffi", "run", "env", "sys", "net"] as const;
  for (const kind of kinds) {
    if (isGranted({ name: kind })) {
      facts.push(`${kind}=all`);
      continue;
    }
    const values = kind === "net" ? [] : asked[kind] ?? [];
    const granted = values.filter((value) => isGranted(one(kind, value)));
    facts.push(
      ...(granted.length > 0
        ? granted.map((value) => `${kind}=${value}`)
        : [`${kind}=none`]),
    );
  }
  return facts;
}

function isGranted(descriptor: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(descriptor).state === "granted";
}

function one(
  kind: keyof AskedPermissions | "net",
  value: string,
): Deno.PermissionDescriptor {
  switch (kind) {
    case "run":
      return { name: kind, command: value };
    case "env":
      return { name: kind, variable: value };
    case "sys":
      return {
        name: kind,
        kind: value as NonNullable<Deno.SysPermissionDescriptor["kind"]>,
      };
    case "net":
      return { name: kind, host: value };
    default:
      return { name: kind, path: value };
  }
}
