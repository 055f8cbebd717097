/**
 * Streams a model's weights from its files into the native library (or anything else that takes rows), through one
 * reused buffer whose parts are filled side by side. Needs read permission for the folder.
 *
 * @module
 */
import { readAhead } from "./_read_ahead.ts";
import {
  checkBufferBytes,
  longestRow,
  readWeightHeaders,
  type RowPiece,
  rowPieces,
} from "./safetensors.ts";
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
   * Called before the first row, if it is there.
   *
   * @param buffer Where the data of every row will lie. It stays where it is until {@linkcode WeightSink.ready}, or the
   * failure of loading, is over.
   */
  begin?(buffer: Uint8Array<ArrayBuffer>): void;
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
  /** Bytes of the reused buffer, or its longest row. Default: a 64th of the weights, from 256 KiB to 16 MiB. */
  bufferBytes?: number;
}

/** Parts of the buffer at most: reads that run at a time. */
const MOST_PARTS = 8;
/** Bytes of a part at least, where the buffer is cut at all. */
const LEAST_PART = 1 << 20;

/** A buffer that is small beside the weights, stays in a processor's caches, and is large enough for few reads. */
function bufferFor(weightBytes: number): number {
  const part = Math.ceil(weightBytes / 64);
  return Math.min(16 << 20, Math.max(256 << 10, part));
}

/** How a buffer of so many bytes is cut: parts, each of which holds a row. */
function cut(
  bytes: number,
  row: number,
): { parts: number; partBytes: number } {
  const least = Math.max(LEAST_PART, row);
  const parts = Math.max(1, Math.min(MOST_PARTS, Math.floor(bytes / least)));
  // Parts begin on pages of their own.
  const partBytes = parts > 1 ? Math.floor(bytes / parts / 4096) * 4096 : bytes;
  return { parts, partBytes: Math.max(partBytes, row) };
}

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
  const wanted = plan.headers.map((header) => ({
    header,
    tensors: [...header.tensors.values()].filter(({ name }) =>
      plan.entries.has(name)
    ),
  }));
  const total = bufferBytes ?? bufferFor(plan.bytes);
  checkBufferBytes(total);
  const longest = longestRow(wanted.flatMap(({ tensors }) => tensors));
  const { parts, partBytes } = cut(total, longest);
  const buffer = new Uint8Array(parts * partBytes);
  function* pieces(): Generator<RowPiece, void, void> {
    for (const { header, tensors } of wanted) {
      yield* rowPieces(header, tensors, partBytes);
    }
  }
  sink.begin?.(buffer);
  let doneBytes = 0;
  for await (const chunk of readAhead(pieces(), buffer, parts)) {
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
    signal?.throwIfAborted();
  }
  await sink.ready();
  return plan;
}
