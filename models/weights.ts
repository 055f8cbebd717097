/**
 * Streams a model's weights from its files into the native library (or anything else that takes rows), through one
 * reused buffer. Needs read permission for the folder.
 *
 * @module
 */
import { readWeightHeaders, StreamBuffer, streamInto } from "./safetensors.ts";
import {
  type LoadPlan,
  planLoad,
  TENSOR_KINDS,
  WEIGHT_DTYPES,
} from "./tensors.ts";
import type { ModelConfig } from "./types.ts";

/** What takes the rows; the native model is one. */
export interface WeightSink {
  /**
   * Takes whole rows of a tensor. The data is only valid during the call, or until its promise settles.
   *
   * @param kind Number of the tensor, as in `enum kvf_tensor`.
   * @param layer Layer; 0 for tensors that belong to none.
   * @param expert Expert; 0 where there are none.
   * @param dtype Number of the element type, as in `enum kvf_dtype`.
   * @param firstRow First row.
   * @param rowCount Rows.
   * @param data The rows' bytes.
   */
  load(
    kind: number,
    layer: number,
    expert: number,
    dtype: number,
    firstRow: number,
    rowCount: number,
    data: Uint8Array<ArrayBuffer>,
  ): void | Promise<void>;
  /** Called once, after the last row. */
  ready(): void | Promise<void>;
}

/** How far loading is. */
export interface LoadProgress {
  /** Bytes handed over. */
  doneBytes: number;
  /** Bytes in all. */
  totalBytes: number;
  /** Name of the tensor that was worked on. */
  tensor: string;
}

/** Options of {@linkcode loadWeights}. */
export interface LoadOptions {
  /** Called after every chunk. */
  onProgress?: (progress: LoadProgress) => void;
  /** Cancels loading; the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
  /** Bytes of the reused buffer. Default: a 64th of the weights, from 256 KiB to 8 MiB. */
  bufferBytes?: number;
}

/** A buffer that is small beside the weights, and large enough for few reads. */
function bufferFor(weightBytes: number): number {
  const part = Math.ceil(weightBytes / 64);
  return Math.min(8 << 20, Math.max(256 << 10, part));
}

/** Milliseconds after which loading lets timers, signals and progress bars run. */
const SLICE_MS = 50;

/**
 * Loads all weights of a model. Extra memory: the one buffer.
 *
 * @param source The model's folder, or a plan from {@linkcode planLoad}.
 * @param config The model's shape.
 * @param sink What takes the rows.
 * @param options See {@linkcode LoadOptions}.
 * @returns What was loaded.
 * @throws {SyntaxError} A file is broken or does not fit the configuration.
 */
export async function loadWeights(
  source: string | LoadPlan,
  config: ModelConfig,
  sink: WeightSink,
  options: LoadOptions = {},
): Promise<LoadPlan> {
  const { onProgress, signal, bufferBytes } = options;
  signal?.throwIfAborted();
  const plan = typeof source === "string"
    ? planLoad(readWeightHeaders(source), config)
    : source;
  const buffer = new StreamBuffer(bufferBytes ?? bufferFor(plan.bytes));
  let doneBytes = 0;
  let pause = performance.now() + SLICE_MS;
  for (const header of plan.headers) {
    const wanted = [...header.tensors.values()]
      .filter((t) => plan.entries.has(t.name));
    for (const chunk of streamInto(header, wanted, buffer)) {
      const { slot, dtype } = plan.entries.get(chunk.tensor.name)!;
      const pending = sink.load(
        TENSOR_KINDS[slot.kind],
        slot.layer,
        slot.expert,
        WEIGHT_DTYPES[dtype],
        chunk.firstRow,
        chunk.rowCount,
        chunk.data,
      );
      if (pending) await pending;
      doneBytes += chunk.data.length;
      onProgress?.({
        doneBytes,
        totalBytes: plan.bytes,
        tensor: chunk.tensor.name,
      });
      if (performance.now() > pause) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        pause = performance.now() + SLICE_MS;
      }
      signal?.throwIfAborted();
    }
  }
  await sink.ready();
  return plan;
}
