/**
 * Errors of the native side.
 *
 * @module
 */

/** Why the native library refused or failed. `unknown`: only the message says why. */
export type NativeErrorKind =
  | "argument"
  | "memory"
  | "device"
  | "state"
  | "cancelled"
  | "busy"
  | "unknown";

/** The native library could not be opened: absent, unreadable or built from another version. */
export class LibraryError extends Error {
  /** Name of the class. */
  override readonly name = "LibraryError";
  /** The file that was tried. */
  readonly path: string;

  /** Makes the error; `cause` is the failure it stands for. */
  constructor(message: string, path: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.path = path;
  }
}

/** A native call failed. The message is the library's own. */
export class NativeError extends Error {
  /** Name of the class. */
  override readonly name = "NativeError";
  /** Why it failed. */
  readonly kind: NativeErrorKind;
  /** The C function that was called. */
  readonly symbol: string;

  /** Makes the error for a failed call of `symbol`. */
  constructor(message: string, kind: NativeErrorKind, symbol: string) {
    super(message);
    this.kind = kind;
    this.symbol = symbol;
  }
}
