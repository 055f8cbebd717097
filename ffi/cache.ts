/**
 * A pool of pages that holds the keys and values of many sequences.
 *
 * @module
 */
import type { Granularity, ModelShape, PackFormat } from "../methods/types.ts";
import { checkChoice, checkInteger } from "./_check.ts";
import { Native } from "./_native.ts";
import { CACHE_CONFIG, DTYPES, LEDGER } from "./_structs.ts";
import type { CachePointer } from "./_symbols.ts";
import { type Device, nativeDevice } from "./device.ts";
import type { Dtype } from "./model.ts";
import { encodeFormat, PAGE_ROWS } from "./format.ts";
import { createSequence, type Sequence } from "./sequence.ts";

/** Shape of a cache. */
export interface CacheConfig extends ModelShape {
  /** Element type of plain rows. */
  rowDtype: Dtype;
  /** Resident bytes at most; 0 or missing: no limit. */
  limitBytes?: number;
}

/** The bytes of a cache. */
export interface Ledger {
  /** Live sequences. */
  sequences: number;
  /** Pages held, shared ones once. */
  pages: number;
  /** Live score and selection objects. */
  objects: number;
  /** Bytes that rows and formats need by arithmetic, shared pages once per owner. */
  promisedBytes: number;
  /** Bytes of the pages found in the tables, shared pages once per owner; equals `promisedBytes`. */
  ownedBytes: number;
  /** Bytes held by the pool, shared pages once. */
  residentBytes: number;
  /** Highest `residentBytes` since the start or the last reset. */
  peakBytes: number;
}

export { PAGE_ROWS };

let nativeOf: (cache: Cache) => Native<CachePointer>;

/** A page pool. Its sequences come from {@linkcode Cache.sequence}. */
export class Cache implements Disposable {
  static {
    nativeOf = (cache) => cache.#native;
  }

  /** The device it lives on. */
  readonly device: Device;
  /** Its shape. */
  readonly config: CacheConfig;
  #native: Native<CachePointer>;

  /** Makes an empty pool. */
  constructor(device: Device, config: CacheConfig) {
    const action = "create Cache";
    const size = (name: keyof ModelShape): number =>
      checkInteger(action, name, config[name], 1);
    const limit = config.limitBytes ?? 0;
    if (!(limit >= 0)) {
      throw new RangeError(
        `Cannot ${action} as limitBytes must be >= 0: limitBytes is ${limit}`,
      );
    }
    const encoded = CACHE_CONFIG.encode({
      n_layer: size("layers"),
      n_head: size("queryHeads"),
      n_kv_head: size("kvHeads"),
      head_dim: size("headDim"),
      row_dtype: checkChoice(action, "rowDtype", config.rowDtype, DTYPES),
      limit_bytes: limit,
    });
    const parent = nativeDevice(device);
    const { library } = parent;
    const pointer = library.create("kvf_cache_create", parent.pointer, encoded);
    this.device = device;
    this.config = config;
    this.#native = new Native(
      "Cache",
      library,
      pointer,
      (pointer) => library.functions.kvf_cache_free(pointer),
      [parent],
    );
  }

  /** Reads the bytes. */
  ledger(): Ledger {
    const { library, pointer } = this.#native;
    const bytes = LEDGER.empty();
    library.status("kvf_cache_ledger", pointer, bytes);
    const ledger = LEDGER.decode(bytes);
    return {
      sequences: ledger.n_sequence,
      pages: ledger.n_page,
      objects: ledger.n_object,
      promisedBytes: ledger.promised_bytes,
      ownedBytes: ledger.owned_bytes,
      residentBytes: ledger.resident_bytes,
      peakBytes: ledger.peak_bytes,
    };
  }

  /** `peakBytes` becomes `residentBytes`. */
  resetPeak(): void {
    const { library, pointer } = this.#native;
    library.status("kvf_cache_reset_peak", pointer);
  }

  /** Bytes of one page of {@linkcode PAGE_ROWS} plain rows. */
  get pageBytes(): number {
    const { library, pointer } = this.#native;
    return library.functions.kvf_cache_page_bytes(pointer);
  }

  /**
   * Bytes of one page of {@linkcode PAGE_ROWS} rows packed in a format, and of what the packed pages of a stored head
   * have in common.
   * @param channels key channels that are kept, 0 for all
   */
  packedBytes(
    format: PackFormat,
    channels = 0,
  ): { page: number; shared: number } {
    const { library, pointer } = this.#native;
    const bytes = new Float64Array(2);
    const encoded = encodeFormat(format, this.config.headDim, channels);
    library.status("kvf_format_bytes", pointer, encoded, bytes);
    return { page: bytes[0] ?? 0, shared: bytes[1] ?? 0 };
  }

  /** A new, empty sequence. */
  sequence(granularity: Granularity): Sequence {
    return createSequence(this, this.#native, granularity);
  }

  /** Lets go of the pool; it is freed when its sequences have been disposed too. A second call does nothing. */
  [Symbol.dispose](): void {
    this.#native.dispose();
  }
}

/** The native side of a cache, for the other handle classes. */
export function nativeCache(cache: Cache): Native<CachePointer> {
  return nativeOf(cache);
}
