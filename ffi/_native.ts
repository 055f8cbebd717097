/**
 * What all handle classes share: one native thing with an owner's name, a release that happens once and only when
 * nothing depends on it any more, and a refusal of any use after dispose.
 *
 * @module
 */
import type { Library } from "./_library.ts";

/** Something native that others may depend on. */
export class Native<P> {
  /** The library it lives in. */
  readonly library: Library;
  #owner: string;
  #pointer: P;
  #free: () => void;
  #parents: readonly Native<unknown>[];
  #disposed = false;
  /** The owner itself, its children and running calls. */
  #holds = 1;
  #calls = 0;
  #waiting: (() => void)[] = [];

  /**
   * Takes a native thing over.
   * @param owner name of the class, for messages
   * @param library the library it lives in; held
   * @param pointer handle or id
   * @param free releases it; called once
   * @param parents things that must outlive it; held
   */
  constructor(
    owner: string,
    library: Library,
    pointer: P,
    free: (pointer: P) => void,
    parents: readonly Native<unknown>[] = [],
  ) {
    this.#owner = owner;
    this.library = library;
    this.#pointer = pointer;
    this.#free = () => free(pointer);
    this.#parents = parents;
    library.retain();
    for (const parent of parents) parent.#holds++;
  }

  /** Handle or id. Throws `TypeError` after dispose. */
  get pointer(): P {
    if (this.#disposed) {
      throw new TypeError(
        `Cannot use ${this.#owner} as it has been disposed`,
      );
    }
    return this.#pointer;
  }

  /** Keeps it alive during a call on another thread. */
  enter(): Disposable {
    this.pointer;
    this.#holds++;
    this.#calls++;
    return {
      [Symbol.dispose]: () => {
        if (--this.#calls === 0) {
          for (const work of this.#waiting.splice(0)) work();
        }
        this.#release();
      },
    };
  }

  /** Runs `work` now, or when the calls that use this handle on other threads have ended. */
  whenIdle(work: () => void): void {
    if (this.#calls === 0) work();
    else this.#waiting.push(work);
  }

  /** The owner lets go. The native thing goes when nothing depends on it. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#release();
  }

  #release(): void {
    if (--this.#holds > 0) return;
    try {
      this.#free();
    } finally {
      for (const parent of this.#parents) parent.#release();
      this.library.release();
    }
  }
}
