/**
 * Reading a prompt, layer by layer.
 *
 * @module
 */
import type { Sparsity } from "../methods/types.ts";
import { checkInteger } from "./_check.ts";
import { type CallOptions, controlled } from "./_control.ts";
import type { Native } from "./_native.ts";
import type { SequenceState } from "./_state.ts";
import { PHASES } from "./_structs.ts";
import type { ModelPointer } from "./_symbols.ts";
import { encodeSparsity } from "./sparsity.ts";

/** Options of {@linkcode Prefill.layers}. */
export interface PrefillOptions extends CallOptions {
  /** Both phases of each layer (when missing), or one of them for a single layer. */
  phase?: "project" | "attend" | "all";
}

let make: (
  state: SequenceState,
  model: Native<ModelPointer>,
  layers: number,
  tokens: number,
  vocab: number,
) => Prefill;

/**
 * A prefill that has begun. Run the layers in order; after each call the layers done may be acted on; then end it. Made
 * by `Sequence.prefill`.
 */
export class Prefill {
  static {
    make = (state, model, layers, tokens, vocab) =>
      new Prefill(state, model, layers, tokens, vocab);
  }

  /** Prompt tokens. */
  readonly tokens: number;
  /** Layers in all. */
  readonly layerCount: number;
  #state: SequenceState;
  #model: Native<ModelPointer>;
  #vocab: number;

  private constructor(
    state: SequenceState,
    model: Native<ModelPointer>,
    layers: number,
    tokens: number,
    vocab: number,
  ) {
    this.#state = state;
    this.#model = model;
    this.layerCount = layers;
    this.tokens = tokens;
    this.#vocab = vocab;
  }

  /**
   * Runs layers `first` to `first + count - 1` on another thread. Afterwards their rows and observations are complete.
   * @returns a promise; it rejects with the signal's reason when cancelled
   */
  async layers(
    first: number,
    count: number,
    options: PrefillOptions = {},
  ): Promise<void> {
    const action = "run prefill";
    checkInteger(action, "first", first, 0, this.layerCount - 1);
    checkInteger(action, "count", count, 1, this.layerCount - first);
    const { phase = "all" } = options;
    const { cache, id } = this.#state;
    using _model = this.#model.enter();
    using _cache = cache.enter();
    using _sequence = id.enter();
    await controlled(
      options,
      (control) =>
        cache.library.statusAsync(
          "kvf_prefill_layers_async",
          this.#model.pointer,
          cache.pointer,
          id.pointer,
          first,
          count,
          PHASES[phase],
          control,
        ),
    );
  }

  /**
   * What candidates for patterns would keep of the attention of the layer that was projected: per candidate and query
   * head the share of the attention probability, mean over the queries, and the share of the query-row pairs.
   * @param candidates each with one pattern per query head
   */
  recall(
    candidates: readonly (readonly Sparsity[])[],
  ): { kept: number; pairs: number }[][] {
    const flat = candidates.flat();
    const patterns = encodeSparsity("measure patterns", flat);
    const shares = new Float32Array(2 * flat.length);
    const { cache, id } = this.#state;
    cache.library.status(
      "kvf_prefill_recall",
      cache.pointer,
      id.pointer,
      patterns,
      flat.length,
      shares,
    );
    let at = 0;
    return candidates.map((heads) =>
      heads.map(() => ({ kept: shares[at++]!, pairs: shares[at++]! }))
    );
  }

  /** Logits of all prompt tokens, `[tokens, vocab]`, between the last layer and {@linkcode Prefill.end}. */
  logits(): Float32Array<ArrayBuffer> {
    const logits = new Float32Array(this.tokens * this.#vocab);
    const { cache, id } = this.#state;
    cache.library.status(
      "kvf_prefill_logits",
      this.#model.pointer,
      cache.pointer,
      id.pointer,
      logits,
      logits.byteLength,
    );
    return logits;
  }

  /** Ends the prefill: the last token's logits become the sequence's, and the activations are freed. */
  end(): void {
    const { cache, id } = this.#state;
    cache.library.status(
      "kvf_prefill_end",
      this.#model.pointer,
      cache.pointer,
      id.pointer,
    );
    this.#state.vocab = this.#vocab;
  }
}

/** Makes a prefill that has begun. */
export function makePrefill(
  state: SequenceState,
  model: Native<ModelPointer>,
  size: { layers: number; tokens: number; vocab: number },
): Prefill {
  return make(state, model, size.layers, size.tokens, size.vocab);
}
