/**
 * The two words that a long call shares with its caller: one to cancel it, one that counts what is done.
 *
 * @module
 */

/** Options of calls that run on another thread. */
export interface CallOptions {
  /** Cancels the call between two layers or steps; the promise then rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called about ten times a second with the number of layers or steps done. */
  onProgress?: (done: number) => void;
}

/** Milliseconds between two reports of progress. */
const PROGRESS_INTERVAL = 100;

/** Runs a call with a control buffer: `[2] u32`, shared with the native thread. */
export async function controlled(
  { signal, onProgress }: CallOptions,
  call: (control: BufferSource) => Promise<unknown>,
): Promise<void> {
  signal?.throwIfAborted();
  const words = new Uint32Array(new SharedArrayBuffer(8));
  const cancel = () => Atomics.store(words, 0, 1);
  signal?.addEventListener("abort", cancel);
  const timer = onProgress === undefined ? undefined : setInterval(
    () => onProgress(Atomics.load(words, 1)),
    PROGRESS_INTERVAL,
  );
  try {
    // The library takes shared memory like any other; only the declared type of buffers does not.
    await call(words as unknown as BufferSource);
    onProgress?.(Atomics.load(words, 1));
  } catch (error) {
    if (isCancelled(error)) signal?.throwIfAborted();
    throw error;
  } finally {
    clearInterval(timer);
    signal?.removeEventListener("abort", cancel);
  }
}

function isCancelled(error: unknown): boolean {
  return error instanceof Error && "kind" in error &&
    error.kind === "cancelled";
}
