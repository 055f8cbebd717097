/**
 * Stopping on Ctrl-C and on the system's request, between two steps and with a word; a second request stops at once.
 *
 * @module
 */
import { StoppedError } from "../spec.ts";

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** Listens for requests to stop while its scope lasts. */
export class Interrupt implements Disposable {
  readonly #controller = new AbortController();
  readonly #stop = (): void => {
    if (this.signal.aborted) Deno.exit(130);
    this.#controller.abort(
      new StoppedError(
        "Stopped. Finished records are kept; the same command goes on.",
      ),
    );
  };

  /** Begins to listen. */
  constructor() {
    for (const name of SIGNALS) Deno.addSignalListener(name, this.#stop);
  }

  /** Aborted once somebody asked. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Listens no longer. */
  [Symbol.dispose](): void {
    for (const name of SIGNALS) Deno.removeSignalListener(name, this.#stop);
  }
}
