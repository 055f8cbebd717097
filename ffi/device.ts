/**
 * Where models and caches live: the CPU or one GPU.
 *
 * @module
 */
import { type DeviceKind, Library, libraryPath } from "./_library.ts";
import { Native } from "./_native.ts";
import { DEVICE_INFO, DEVICE_OPTIONS, SIMD_LEVELS } from "./_structs.ts";
import type { DevicePointer } from "./_symbols.ts";
import { checkChoice, checkInteger } from "./_check.ts";
import { NativeError } from "./errors.ts";

export type { DeviceKind };

/** A level of CPU vector instructions. */
export type SimdLevel = "generic" | "avx2" | "avx512" | "avx512bf16";

/** Options of {@linkcode Device}. */
export interface DeviceOptions {
  /** Which build of the library, CPU when missing. */
  kind?: DeviceKind;
  /** Path of the library file in place of the build beside the project. */
  library?: string;
  /** Index of the GPU, 0 when missing. */
  ordinal?: number;
  /** CPU threads; 0 or missing: as many as the affinity mask allows. */
  threads?: number;
  /** Highest level of vector instructions to use; missing: the best there is. */
  simd?: SimdLevel;
}

/** What a device is. */
export interface DeviceInfo {
  /** CPU or CUDA. */
  kind: DeviceKind;
  /** Name of the processor or GPU. */
  name: string;
  /** CPU threads in use. */
  threads: number;
  /** Vector instructions in use. */
  simd: SimdLevel;
  /** Compute capability of the GPU, for instance "9.0"; absent on the CPU. */
  capability?: string;
  /** Whether cuBLASLt was found. */
  blas: boolean;
  /** Memory of the device, bytes; 0 when unknown. */
  totalBytes: number;
  /** Free memory now, bytes; 0 when unknown. */
  freeBytes: number;
}

let nativeOf: (device: Device) => Native<DevicePointer>;

/**
 * A CPU or GPU, opened through the library's build for it. The library file is opened here, never at import, and closed
 * when the device and all that lives on it have been disposed.
 */
export class Device implements Disposable {
  static {
    nativeOf = (device) => device.#native;
  }

  /** Which build it runs on. */
  readonly kind: DeviceKind;
  /** The library file. */
  readonly path: string;
  #native: Native<DevicePointer>;

  /**
   * Opens a device.
   * @throws {LibraryError} when the library is missing or has another ABI
   * @throws {NativeError} when the device is missing
   */
  constructor(options: DeviceOptions = {}) {
    const { kind = "cpu", ordinal = 0, threads = 0, simd } = options;
    const action = "open Device";
    checkChoice(action, "kind", kind, ["cpu", "cuda"]);
    const encoded = DEVICE_OPTIONS.encode({
      ordinal: checkInteger(action, "ordinal", ordinal),
      n_thread: checkInteger(action, "threads", threads),
      simd: simd === undefined
        ? 0
        : checkChoice(action, "simd", simd, SIMD_LEVELS),
    });
    this.kind = kind;
    this.path = options.library ?? libraryPath(kind);
    const library = new Library(this.path, kind);
    try {
      const pointer = library.create("kvf_device_create", encoded);
      this.#native = new Native("Device", library, pointer, (pointer) => {
        library.functions.kvf_device_free(pointer);
      });
    } finally {
      library.release();
    }
  }

  /** Reads what the device is and how much memory is free. */
  info(): DeviceInfo {
    const { library, pointer } = this.#native;
    const bytes = DEVICE_INFO.empty();
    library.status("kvf_device_describe", pointer, bytes);
    const info = DEVICE_INFO.decode(bytes);
    const level = SIMD_LEVELS[info.simd];
    return {
      kind: info.kind === 1 ? "cuda" : "cpu",
      name: info.name,
      threads: info.n_thread,
      simd: level === undefined || level === "best" ? "generic" : level,
      ...(info.capability === 0 ? {} : {
        capability: `${Math.floor(info.capability / 10)}.${
          info.capability % 10
        }`,
      }),
      blas: info.blas === 1,
      totalBytes: info.total_bytes,
      freeBytes: info.free_bytes,
    };
  }

  /** Measures the speed of plain reads of `bytes` bytes of memory, bytes per second. Blocks. */
  readBandwidth(bytes: number): number {
    if (!(bytes > 0)) {
      throw new RangeError(
        `Cannot measure Device as bytes must be > 0: bytes is ${bytes}`,
      );
    }
    const { library, pointer } = this.#native;
    const speed = library.functions.kvf_device_read_bandwidth(pointer, bytes);
    if (speed > 0) return speed;
    throw new NativeError(
      `Cannot measure Device as reading ${bytes} bytes failed`,
      "device",
      "kvf_device_read_bandwidth",
    );
  }

  /** Devices, models and caches of this library that have not been freed, this one included. */
  get liveHandles(): number {
    this.#native.pointer;
    return this.#native.library.functions.kvf_live_handles();
  }

  /** Lets go of the device; it is freed when nothing lives on it any more. A second call does nothing. */
  [Symbol.dispose](): void {
    this.#native.dispose();
  }
}

/** The native side of a device, for the other handle classes. */
export function nativeDevice(device: Device): Native<DevicePointer> {
  return nativeOf(device);
}
