/**
 * All methods by name, and methods of the user's own from files outside the project.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { toFileUrl } from "@std/path";
import { z } from "zod";
import { nearest } from "./_nearest.ts";
import { adakv } from "./adakv.ts";
import { cam } from "./cam.ts";
import { fullkv } from "./fullkv.ts";
import { gear } from "./gear.ts";
import { h2o } from "./h2o.ts";
import { headkv } from "./headkv.ts";
import { kivi } from "./kivi.ts";
import { kvquant } from "./kvquant.ts";
import { l2norm } from "./l2norm.ts";
import { minference } from "./minference.ts";
import { minicache } from "./minicache.ts";
import { nacl } from "./nacl.ts";
import { pyramidkv } from "./pyramidkv.ts";
import { quest } from "./quest.ts";
import { scissorhands } from "./scissorhands.ts";
import { snapkv } from "./snapkv.ts";
import { streamingllm } from "./streamingllm.ts";
import { think } from "./think.ts";
import type { Method } from "./types.ts";

/** A method whose options are not known at compile time. */
// deno-lint-ignore no-explicit-any -- a Method<A> is no Method<unknown>, as create takes its own options
export type AnyMethod = Method<any>;

/** All methods of the project by name. */
export const METHODS: ReadonlyMap<string, AnyMethod> = new Map<
  string,
  AnyMethod
>([
  ["fullkv", fullkv],
  ["streamingllm", streamingllm],
  ["h2o", h2o],
  ["snapkv", snapkv],
  ["pyramidkv", pyramidkv],
  ["adakv", adakv],
  ["headkv", headkv],
  ["l2norm", l2norm],
  ["nacl", nacl],
  ["scissorhands", scissorhands],
  ["quest", quest],
  ["cam", cam],
  ["think", think],
  ["kivi", kivi],
  ["kvquant", kvquant],
  ["gear", gear],
  ["minference", minference],
  ["minicache", minicache],
]);

/** Shape of a method, as far as it can be seen without running it. */
const METHOD_SHAPE = z.object({
  name: z.string().regex(
    /^[a-z][a-z0-9_.-]*$/,
    "must be lower case, without spaces",
  ),
  title: z.string().min(1),
  summary: z.string(),
  paper: z.string().optional(),
  kind: z.enum([
    "none",
    "evict",
    "merge",
    "quantise",
    "prune",
    "retrieve",
    "sparse",
  ]),
  acts: z.string(),
  granularities: z.array(z.enum(["kv_head", "query_head"])).min(1),
  altersPrefill: z.boolean().optional(),
  differs: z.string(),
  options: z.record(
    z.string().regex(/^[a-z][A-Za-z0-9]*$/, "must be in camel case"),
    z.object({
      schema: z.custom(
        (value) =>
          typeof value === "object" && value !== null &&
          "safeParse" in value && typeof value.safeParse === "function",
        "must be made by a helper of define.ts",
      ),
      description: z.string(),
      source: z.string().optional(),
    }),
  ),
  create: z.custom(
    (value) => typeof value === "function",
    "must be a function",
  ),
});

/**
 * The project's method of a name.
 * @throws {TypeError} for an unknown name; the message has the nearest one
 */
export function resolveMethod(name: string): AnyMethod {
  const method = METHODS.get(name);
  if (method !== undefined) return method;
  const near = nearest(name, METHODS.keys());
  throw new TypeError(
    `Cannot find method "${name}" as the methods are ${
      [...METHODS.keys()].join(", ")
    }${near === undefined ? "" : `; did you mean "${near}"?`}`,
  );
}

/** Whether a method is given as a file of the user's and not by name. */
export function isMethodPath(nameOrPath: string): boolean {
  return /[/\\]|\.(ts|js|mts|mjs)$/.test(nameOrPath);
}

/** The file of a method of the user's own. */
export interface MethodFile {
  /** Path or address, as given. */
  path: string;
  /** SHA-256 of its content. */
  source: string;
}

const FILES = new WeakMap<AnyMethod, MethodFile>();

/** The file that a method of the user's was loaded from; undefined for the project's own. */
export function methodFile(method: AnyMethod): MethodFile | undefined {
  return FILES.get(method);
}

/**
 * A method by name, or from a file: its default export, or its only export that is a method. The file is a module that
 * may lie anywhere; reading it needs permission for its path.
 * @throws {TypeError} for an unknown name, and when the file holds no valid method or one whose name is taken
 */
export async function loadMethod(nameOrPath: string): Promise<AnyMethod> {
  if (!isMethodPath(nameOrPath)) return resolveMethod(nameOrPath);
  const url = nameOrPath.startsWith("file:")
    ? nameOrPath
    : toFileUrl(nameOrPath).href;
  // Asked before, as the import of a file that is not there says so in other words.
  if (!Deno.statSync(new URL(url)).isFile) {
    throw new TypeError(
      `Cannot load a method from "${nameOrPath}" as it must be a file`,
    );
  }
  const exported: Record<string, unknown> = await import(url);
  const method = pickMethod(nameOrPath, exported);
  if (METHODS.has(method.name)) {
    throw new TypeError(
      `Cannot load a method from "${nameOrPath}" as the name "${method.name}" is taken: records are kept by name; give it another`,
    );
  }
  const source = createHash("sha256")
    .update(Deno.readFileSync(new URL(url))).digest("hex");
  FILES.set(method, { path: nameOrPath, source });
  return method;
}

function pickMethod(
  path: string,
  exported: Record<string, unknown>,
): AnyMethod {
  const parsed = "default" in exported
    ? [["default", METHOD_SHAPE.safeParse(exported.default)] as const]
    : Object.entries(exported)
      .filter(([, value]) => looksLikeMethod(value))
      .map(([name, value]) => [name, METHOD_SHAPE.safeParse(value)] as const);
  const [first] = parsed;
  if (first === undefined || parsed.length > 1) {
    throw new TypeError(
      `Cannot load a method from "${path}" as it must have a default export, or exactly one export that is a method: there are ${parsed.length}`,
    );
  }
  const [name, result] = first;
  if (!result.success) {
    const [issue] = result.error.issues;
    throw new TypeError(
      `Cannot load a method from "${path}" as export "${name}" is no valid method: ${
        issue?.path.join(".") || "it"
      }: ${issue?.message}`,
    );
  }
  return exported[name] as AnyMethod;
}

function looksLikeMethod(value: unknown): boolean {
  return typeof value === "object" && value !== null && "create" in value &&
    "options" in value;
}
