// deno-lint-ignore-file no-console -- the command line prints
/**
 * The launcher of `kvf`: builds the native library when it is missing or stale, works out which folders the command
 * line names, and starts the program with exactly those permissions and the one library.
 *
 * @module
 */
import { fromFileUrl, resolve, toFileUrl } from "@std/path";
import { CHILD_ENV } from "../tasks/_child.ts";
import { report } from "./main.ts";
import { createProgram } from "./program.ts";
import { type Grants, optionFiles, UsageError } from "./spec.ts";

const ROOT = fromFileUrl(new URL("..", import.meta.url));

/** Permission flags for a call. Paths become absolute; the project's own sources may always be read. */
export function permissionFlags(grants: Grants, cwd: string): string[] {
  const absolute = (path: string) => resolve(cwd, path);
  const write = (grants.write ?? []).map(absolute);
  const project = (grants.project ?? [""]).map((path) => resolve(ROOT, path));
  const read = [...project, ...(grants.read ?? []).map(absolute), ...write];
  // Modules are code: none comes over the network, which an import could also carry a secret out on.
  const flags = [
    "--no-prompt",
    "--no-remote",
    "--deny-import",
    list("read", read),
  ];
  if (write.length > 0) flags.push(list("write", write));
  if (grants.native) flags.push(list("ffi", [libraryPath(grants.device)]));
  if (grants.env?.length) flags.push(list("env", grants.env));
  if (grants.run?.length) flags.push(list("run", grants.run));
  if (grants.sys?.length) flags.push(list("sys", grants.sys));
  return flags;
}

function list(kind: string, values: string[]): string {
  // A comma separates paths in Deno's flags, and there is no way to write one that does not.
  const divided = values.find((value) => value.includes(","));
  if (divided !== undefined) {
    throw new UsageError(
      `Cannot grant ${kind} access as the path must not hold a comma: "${divided}"`,
    );
  }
  return `--allow-${kind}=${values.join(",")}`;
}

/** The library that a device name stands for. */
export function libraryPath(device = "cpu"): string {
  return resolve(
    ROOT,
    "build",
    device.startsWith("cuda") ? "libkvf_cuda.so" : "libkvf.so",
  );
}

async function launch(args: string[], cwd: string): Promise<number> {
  let status = 0;
  const program = createProgram(async (spec, call) => {
    let grants = spec.grants(call);
    if (spec.probe) {
      const asked = await askGrants(args, spec.probe(call), cwd);
      if (typeof asked === "number") {
        status = asked;
        return;
      }
      grants = { ...grants, ...asked };
    }
    grants.read = [...grants.read ?? [], ...optionFiles(call.rest)];
    if (grants.native) {
      const target = grants.device?.startsWith("cuda") ? "build:cuda" : "build";
      const built = await build(target);
      if (built !== 0) {
        status = built;
        return;
      }
    }
    const script = spec.script?.(call, (path) => resolve(cwd, path));
    const capture = script !== undefined && call.flags.json === true;
    const run = await start(
      [
        "run",
        "-q",
        "--config",
        resolve(ROOT, "deno.json"),
        ...permissionFlags(grants, cwd),
        ...(script === undefined
          ? [resolve(ROOT, "cli/main.ts"), ...args]
          : ["--cached-only", sandboxUrl(script.path), ...script.args]),
      ],
      script?.cwd ?? cwd,
      {
        trusted: script === undefined,
        ...(capture ? { most: MOST_CAPTURED } : {}),
      },
    );
    status = run.status;
    if (capture) console.log(JSON.stringify(run, null, 2));
  });
  await program.parseAsync(args, { from: "user" });
  return status;
}

/** What a file may decide about a call: where it reads and writes, and on which device it runs. */
type Asked = Pick<Grants, "read" | "write" | "native" | "device">;

/**
 * Asks the program, in a process that may do next to nothing, what a call needs; an exit status when it cannot say. A plan
 * of the user's may be a program, and write what it likes: its answer names folders, never programs to start.
 */
async function askGrants(
  args: string[],
  probe: Grants,
  cwd: string,
): Promise<Asked | number> {
  const { code, stdout } = await new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--config", resolve(ROOT, "deno.json")],
      ...permissionFlags(probe, cwd),
      ...[resolve(ROOT, "cli/main.ts"), ...args, "--print-grants"],
    ],
    cwd,
    stdin: "null",
    stderr: "inherit",
  }).output();
  if (code !== 0) return code;
  // What a plan prints comes before, and again when the call runs.
  const answer = new TextDecoder().decode(stdout).trimEnd().split("\n").at(-1)!;
  if (!answer.startsWith("{")) {
    throw new UsageError(
      `Cannot run as the program must say what the call needs: it said "${answer}"`,
    );
  }
  const { read, write, native, device } = JSON.parse(answer) as Grants;
  return {
    ...(read === undefined ? {} : { read }),
    ...(write === undefined ? {} : { write }),
    ...(native === undefined ? {} : { native }),
    ...(device === undefined ? {} : { device }),
  };
}

/** The host of scripts that are not trusted, with the script's address. */
function sandboxUrl(script: string): string {
  const url = toFileUrl(resolve(ROOT, "cli/sandbox.ts"));
  url.searchParams.set("script", toFileUrl(script).href);
  return url.href;
}

/** Builds the library where it is missing or stale, and says so then; what the compiler says is shown when it fails. */
async function build(target: string): Promise<number> {
  const child = new Deno.Command("deno", {
    env: CHILD_ENV,
    args: ["task", "-q", "--config", resolve(ROOT, "deno.json"), target],
    cwd: ROOT,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let said = "", told = false;
  for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
    said += text;
    // Nobody should wonder for minutes what happens.
    if (told || !/^(cc|nvcc) /m.test(said)) continue;
    told = true;
    console.error(`compiling the native library (deno task ${target})`);
  }
  const { code } = await child.status;
  if (code !== 0) console.error(said.trimEnd());
  return code;
}

/** Bytes of a script's output that a JSON document holds at most. */
const MOST_CAPTURED = 2 ** 24;

/** How Deno is started. */
interface StartOptions {
  /** Whether the program is one of ours, which ends what it does when it is asked to stop. */
  trusted: boolean;
  /** Bytes of its output to keep in place of showing it. */
  most?: number;
}

/** Starts Deno and waits for it, also while it ends what a request to stop interrupted. */
async function start(
  args: string[],
  cwd: string,
  { trusted, most }: StartOptions,
): Promise<{ status: number; output?: string; cut?: boolean }> {
  const child = new Deno.Command("deno", {
    args,
    cwd,
    // Deno keeps what web caches hold in its own folder, where a script that is not trusted has nothing to write.
    env: { ...CHILD_ENV, ...(trusted ? {} : { DENO_DIR: "/dev/null/none" }) },
    stdin: "inherit",
    stdout: most === undefined ? "inherit" : "piped",
    stderr: "inherit",
  }).spawn();
  // A terminal interrupts the child itself. Who does not listen is ended: a stranger at the second request.
  let requests = 0;
  const ask = (signal?: "SIGTERM"): void => {
    requests++;
    if (requests > (trusted ? 2 : 1)) child.kill("SIGKILL");
    else if (signal !== undefined) child.kill(signal);
  };
  const wait = (): void => ask();
  const stop = (): void => ask("SIGTERM");
  Deno.addSignalListener("SIGINT", wait);
  Deno.addSignalListener("SIGTERM", stop);
  try {
    const kept = most === undefined ? {} : await firstBytes(child.stdout, most);
    return { status: (await child.status).code, ...kept };
  } finally {
    Deno.removeSignalListener("SIGINT", wait);
    Deno.removeSignalListener("SIGTERM", stop);
  }
}

/** Reads to the end and keeps the beginning, so that no output can fill the memory. */
async function firstBytes(
  stream: ReadableStream<Uint8Array>,
  most: number,
): Promise<{ output: string; cut: boolean }> {
  const decoder = new TextDecoder();
  let output = "", left = most, cut = false;
  for await (const bytes of stream) {
    output += decoder.decode(bytes.subarray(0, left), { stream: true });
    cut ||= bytes.length > left;
    left = Math.max(0, left - bytes.length);
  }
  return { output: output + decoder.decode(), cut };
}

if (import.meta.main) {
  try {
    Deno.exit(await launch(Deno.args, Deno.env.get("INIT_CWD") ?? Deno.cwd()));
  } catch (error) {
    Deno.exit(report(error));
  }
}
