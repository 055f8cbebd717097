/**
 * Opens the native library and calls its functions: statuses become errors, NULL becomes an error, and the error text
 * goes through a buffer of the caller's.
 *
 * @module
 */
import { fromFileUrl } from "@std/path";
import { LibraryError, NativeError, type NativeErrorKind } from "./errors.ts";
import { STATUS_KINDS, text } from "./_structs.ts";
import { ABI_VERSION, SYMBOLS } from "./_symbols.ts";

type Table = typeof SYMBOLS;
type Functions = Deno.DynamicLibrary<Table>["symbols"];
type Name = keyof Table;

/** The arguments of a function without the error buffer and its size. */
type Leading<N extends Name> = Parameters<Functions[N]> extends
  readonly [...infer A, infer _Error, number] ? A : never;

/** Functions that return a status or an id, called on this thread. */
export type StatusName = {
  [N in Name]: Table[N] extends { nonblocking: true } ? never
    : Table[N]["result"] extends "i32" ? N
    : never;
}[Name];
/** The same, called on another thread. */
export type AsyncName = {
  [N in Name]: Table[N] extends { nonblocking: true } ? N : never;
}[Name];
/** Functions that return a handle or NULL. */
export type ConstructorName = {
  [N in Name]: N extends `${string}_create`
    ? Table[N]["result"] extends "i32" ? never : N
    : never;
}[Name];

/** Which build of the library. */
export type DeviceKind = "cpu" | "cuda";

const FILES = { cpu: "libkvf.so", cuda: "libkvf_cuda.so" } as const;
const BUILDS = {
  cpu: "deno task build",
  cuda: "deno task build:cuda",
} as const;

/** A buffer that C writes an error message into. */
export class ErrorBuffer {
  /** The memory. */
  readonly bytes: Uint8Array<ArrayBuffer> = new Uint8Array(512);

  /** The error of a call of `symbol` that failed with `status`. */
  error(symbol: string, status: number): NativeError {
    const kind: NativeErrorKind =
      STATUS_KINDS[status as keyof typeof STATUS_KINDS] ?? "unknown";
    const message = text(this.bytes) ||
      `Cannot complete ${symbol} as it failed: status is ${status}`;
    this.bytes[0] = 0;
    return new NativeError(message, kind, symbol);
  }
}

/** Path of a build beside the project. */
export function libraryPath(kind: DeviceKind): string {
  const url = new URL(`../build/${FILES[kind]}`, import.meta.url);
  if (url.protocol !== "file:") {
    throw new LibraryError(
      `Cannot open ${
        FILES[kind]
      } as this project was not loaded from a folder: "${url}"; build it from a checkout and give its path`,
      url.href,
    );
  }
  return fromFileUrl(url);
}

/** Builds that stay open for the rest of the process, by path, or why they cannot be opened. */
const KEPT = new Map<string, Deno.DynamicLibrary<Table> | Error>();

/** Opens a file, unless it is kept open. */
function openFile(path: string): Deno.DynamicLibrary<Table> {
  const kept = KEPT.get(path);
  if (kept instanceof Error) throw kept;
  return kept ?? Deno.dlopen(path, SYMBOLS);
}

/**
 * Opens the builds that may be loaded, keeps them open and gives up the permission to load native code. Who holds that
 * permission for one file may call every function that the file's own needs bring along, `system` of the C library
 * among them; afterwards only the functions of {@linkcode SYMBOLS} can be called, also by code that is loaded later. It
 * holds for this thread and the workers that it starts.
 */
export function confineNative(): void {
  for (const kind of ["cpu", "cuda"] as const) {
    const path = libraryPath(kind);
    const { state } = Deno.permissions.querySync({ name: "ffi", path });
    if (state !== "granted") continue;
    try {
      KEPT.set(path, Deno.dlopen(path, SYMBOLS));
    } catch (error) {
      KEPT.set(path, error as Error);
    }
  }
  Deno.permissions.revokeSync({ name: "ffi" });
}

/** An open library. Counts its users and closes when the last one lets go. */
export class Library {
  /** The file. */
  readonly path: string;
  #dynamic: Deno.DynamicLibrary<Table>;
  #error = new ErrorBuffer();
  #users = 1;

  /**
   * Opens a library file.
   * @param path the file
   * @param kind which build it is, for the advice in the message
   * @throws {LibraryError} when it is missing, cannot be loaded or has another ABI; a permission refusal is passed on
   */
  constructor(path: string, kind: DeviceKind) {
    this.path = path;
    try {
      this.#dynamic = openFile(path);
    } catch (cause) {
      if (cause instanceof Deno.errors.NotCapable) throw cause;
      throw new LibraryError(
        `Cannot open "${path}" as it is missing, cannot be loaded or is out of date: run "${
          BUILDS[kind]
        }"`,
        path,
        cause,
      );
    }
    const version = this.#dynamic.symbols.kvf_abi_version();
    if (version !== ABI_VERSION) {
      this.#close();
      throw new LibraryError(
        `Cannot use "${path}" as its ABI version must be ${ABI_VERSION}: version is ${version}; run "${
          BUILDS[kind]
        }"`,
        path,
      );
    }
  }

  /** All functions, for the few calls that have no error buffer. */
  get functions(): Functions {
    if (this.#users === 0) {
      throw new TypeError("Cannot use Library as it has been closed");
    }
    return this.#dynamic.symbols;
  }

  /** One more user. */
  retain(): void {
    this.#users++;
  }

  /** One user less; the last one closes the file. */
  release(): void {
    if (--this.#users === 0) this.#close();
  }

  #close(): void {
    if (!KEPT.has(this.path)) this.#dynamic.close();
  }

  /** Calls a function that reports by status; returns its result, an id or 0. */
  status<N extends StatusName>(name: N, ...args: Leading<N>): number {
    const call = this.functions[name] as unknown as Call<number>;
    const { bytes } = this.#error;
    const status = call(...args, bytes, bytes.length);
    if (status < 0) throw this.#error.error(name, status);
    return status;
  }

  /** The same on another thread. The arguments' buffers are held until the promise settles. */
  async statusAsync<N extends AsyncName>(
    name: N,
    ...args: Leading<N>
  ): Promise<number> {
    const call = this.functions[name] as unknown as Call<Promise<number>>;
    const error = new ErrorBuffer();
    const status = await call(...args, error.bytes, error.bytes.length);
    if (status < 0) throw error.error(SYMBOLS[name].name, status);
    return status;
  }

  /** Calls a constructor; returns its handle. */
  create<N extends ConstructorName>(
    name: N,
    ...args: Leading<N>
  ): NonNullable<ReturnType<Functions[N]>> {
    const call = this.functions[name] as unknown as Call<
      ReturnType<Functions[N]>
    >;
    const { bytes } = this.#error;
    const handle = call(...args, bytes, bytes.length);
    if (handle === null) {
      throw this.#error.error(name, this.functions.kvf_last_status());
    }
    return handle;
  }
}

type Call<R> = (...args: unknown[]) => R;
