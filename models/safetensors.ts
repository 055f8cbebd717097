/**
 * The safetensors format: eight bytes of header length (little-endian), a JSON header, then the tensors' bytes without
 * gaps. Reading checks all of it before the first tensor is used, and streams rows through one reused buffer.
 *
 * Needs read permission for the files, write permission for {@linkcode writeSafetensors}. Hosts are little-endian.
 *
 * @module
 */
import { join } from "@std/path";
import { bytesToFloats } from "./_convert.ts";
import {
  decodeUtf8,
  fileExists,
  isRecord,
  malformed,
  parseJsonObject,
  readBounded,
  show,
} from "./_file.ts";

/** Bytes of one element, by dtype name. */
export const TENSOR_DTYPE_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

/** Name of an element type, as in the file. */
export type TensorDtype = keyof typeof TENSOR_DTYPE_BYTES;

/** One tensor's entry in a header. */
export interface TensorInfo {
  /** Name. */
  readonly name: string;
  /** Element type. */
  readonly dtype: TensorDtype;
  /** Dimensions, outermost first. */
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly start: number;
  /** Bytes. */
  readonly bytes: number;
  /** The file. */
  readonly file: string;
}

/** The checked header of one file. */
export interface SafetensorsHeader {
  /** The file. */
  readonly file: string;
  /** Bytes of the whole file. */
  readonly fileBytes: number;
  /** Bytes of the JSON header, without its length field. */
  readonly headerBytes: number;
  /** Texts of `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Tensors by name, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/** Some rows of a tensor. */
export interface TensorChunk {
  /** The tensor. */
  readonly tensor: TensorInfo;
  /** First row; a vector or scalar is one row. */
  readonly firstRow: number;
  /** Rows. */
  readonly rowCount: number;
  /** The rows' bytes: a view of the reused buffer, valid until the next chunk is asked for. */
  readonly data: Uint8Array<ArrayBuffer>;
}

/** Options of {@linkcode streamTensors}. */
export interface StreamOptions {
  /** Bytes of the reused buffer; grows to one row where a row is longer. Default: 8 MiB. */
  bufferBytes?: number;
}

/** A whole tensor, converted. */
export interface Tensor {
  /** Element type in the file. */
  dtype: TensorDtype;
  /** Dimensions, outermost first. */
  shape: number[];
  /** The values; integers beyond 2^24 are rounded. */
  data: Float32Array;
}

/** A tensor to write. The dtype follows from the kind of array unless it is given (`BF16` and `F16` as Uint16Array). */
export interface TensorToWrite {
  /** Dimensions, outermost first. */
  shape: readonly number[];
  /** The values. */
  data:
    | Float32Array
    | Float64Array
    | Int32Array
    | Uint32Array
    | Uint16Array
    | Int8Array
    | Uint8Array
    | BigInt64Array;
  /** Element type; must have the array's element size. */
  dtype?: TensorDtype;
}

/** Longest header that is read, in bytes: the limit of the reference implementation. */
const MAX_HEADER_BYTES = 100_000_000;
/** Longest index file that is read, in bytes. */
const MAX_INDEX_BYTES = 64 * 2 ** 20;
const DEFAULT_BUFFER_BYTES = 8 * 2 ** 20;

function isSize(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** Reads exactly `target.length` bytes at the file's position. */
function readFully(
  handle: Deno.FsFile,
  target: Uint8Array,
  file: string,
  what: string,
): void {
  for (let done = 0; done < target.length;) {
    const n = handle.readSync(target.subarray(done));
    if (n === null || n === 0) throw incomplete(file, what);
    done += n;
  }
}

function incomplete(file: string, what: string): SyntaxError {
  return malformed(file, `${what} must be complete`, "the file ended early");
}

function parseTensor(
  name: string,
  entry: unknown,
  dataStart: number,
  dataBytes: number,
  file: string,
): TensorInfo {
  const tensor = `tensor ${show(name)}`;
  if (!isRecord(entry)) {
    throw malformed(file, `${tensor} must be an object`, entry);
  }
  const extra = Object.keys(entry).find((k) =>
    k !== "dtype" && k !== "shape" && k !== "data_offsets"
  );
  if (extra !== undefined) {
    throw malformed(
      file,
      `${tensor} must have "dtype", "shape" and "data_offsets" only`,
      extra,
    );
  }
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== "string" || !Object.hasOwn(TENSOR_DTYPE_BYTES, dtype)) {
    throw malformed(
      file,
      `${tensor} must have a dtype of ${
        Object.keys(TENSOR_DTYPE_BYTES).join(", ")
      }`,
      dtype ?? "missing",
    );
  }
  if (!Array.isArray(shape) || shape.length > 16 || !shape.every(isSize)) {
    throw malformed(
      file,
      `${tensor} must have a shape of at most 16 sizes`,
      shape ?? "missing",
    );
  }
  const [begin, end, more] = Array.isArray(offsets) ? offsets : [];
  if (
    more !== undefined || !isSize(begin) || !isSize(end) || begin > end ||
    end > dataBytes
  ) {
    throw malformed(
      file,
      `${tensor} must have two ascending data_offsets of at most ${dataBytes}`,
      offsets ?? "missing",
    );
  }
  const wanted = shape.reduce(
    (product: number, size: number) => product * size,
    TENSOR_DTYPE_BYTES[dtype as TensorDtype],
  );
  if (wanted !== end - begin) {
    throw malformed(
      file,
      `${tensor} must span ${wanted} bytes for ${dtype} ${show(shape)}`,
      end - begin,
    );
  }
  return {
    name,
    dtype: dtype as TensorDtype,
    shape,
    start: dataStart + begin,
    bytes: end - begin,
    file,
  };
}

/**
 * Checks a header: every field, offset, dtype and shape, that tensors neither overlap nor leave gaps, and that the file
 * ends where the last one does.
 *
 * @param text The JSON header.
 * @param fileBytes Bytes of the whole file.
 * @param headerBytes Bytes of the JSON header.
 * @param file Name of the file, for errors.
 * @returns The header.
 * @throws {SyntaxError} Something is wrong; the message names the file and the tensor.
 */
function parseHeader(
  text: string,
  fileBytes: number,
  headerBytes: number,
  file: string,
): SafetensorsHeader {
  const json = parseJsonObject(text, file);
  const dataStart = 8 + headerBytes;
  const dataBytes = fileBytes - dataStart;
  const metadata: Record<string, string> = Object.create(null);
  const tensors: TensorInfo[] = [];
  for (const [name, entry] of Object.entries(json)) {
    if (name !== "__metadata__") {
      tensors.push(parseTensor(name, entry, dataStart, dataBytes, file));
      continue;
    }
    if (!isRecord(entry)) {
      throw malformed(file, '"__metadata__" must be an object', entry);
    }
    for (const [key, value] of Object.entries(entry)) {
      if (typeof value !== "string") {
        throw malformed(file, `"__metadata__.${key}" must be a text`, value);
      }
      metadata[key] = value;
    }
  }
  tensors.sort((a, b) => a.start - b.start || a.bytes - b.bytes);
  let at = dataStart;
  for (const { name, start, bytes } of tensors) {
    if (start !== at) {
      throw malformed(
        file,
        `tensor ${show(name)} must begin at offset ${at - dataStart}, ` +
          `${start < at ? "it overlaps another one" : "there is a gap"}`,
        start - dataStart,
      );
    }
    at += bytes;
  }
  if (at !== fileBytes) {
    throw malformed(file, `it must have ${at} bytes`, fileBytes);
  }
  return {
    file,
    fileBytes,
    headerBytes,
    metadata,
    tensors: new Map(tensors.map((t) => [t.name, t])),
  };
}

/** Bytes of an open file, which is then at its begin; its own statSync() asks for the place that a link leads to. */
function sizeOf(handle: Deno.FsFile): number {
  const size = handle.seekSync(0, Deno.SeekMode.End);
  handle.seekSync(0, Deno.SeekMode.Start);
  return size;
}

/**
 * Reads and checks the header of a file.
 *
 * @param file The file.
 * @returns The header.
 * @throws {SyntaxError} The file is broken; the message names it and the tensor.
 */
export function readSafetensorsHeader(file: string): SafetensorsHeader {
  // Asked before opening: opening a pipe would wait for its other end.
  if (file === "" || !Deno.statSync(file).isFile) {
    throw malformed(file, "it must be a file");
  }
  using handle = Deno.openSync(file);
  const size = sizeOf(handle);
  if (size < 10) {
    throw malformed(file, "it must have at least 10 bytes", size);
  }
  const prefix = new Uint8Array(8);
  readFully(handle, prefix, file, "the header length");
  const length = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  const limit = Math.min(MAX_HEADER_BYTES, size - 8);
  if (length < 2 || length > limit) {
    throw malformed(
      file,
      `its header length must be 2 to ${limit} bytes`,
      length,
    );
  }
  const header = new Uint8Array(length);
  readFully(handle, header, file, "the header");
  if (header[0] !== 0x7b) {
    throw malformed(file, 'its header must begin with "{"', header[0]);
  }
  return parseHeader(decodeUtf8(header, file), size, length, file);
}

/** Name of a folder's index of shards. */
const INDEX_NAME = "model.safetensors.index.json";
/** Name of a folder's only weight file. */
const SINGLE_NAME = "model.safetensors";

function readIndex(index: string): Map<string, string> {
  const text = decodeUtf8(readBounded(index, MAX_INDEX_BYTES), index);
  const map = parseJsonObject(text, index)["weight_map"];
  if (!isRecord(map)) {
    throw malformed(
      index,
      'field "weight_map" must be an object',
      map ?? "missing",
    );
  }
  const shards = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(map)) {
    // A name with a separator could lead out of the folder.
    if (
      typeof shard !== "string" ||
      !/^[\w][\w.+-]{0,200}\.safetensors$/.test(shard)
    ) {
      throw malformed(
        index,
        `tensor ${show(tensor)} must name a .safetensors file of the folder`,
        shard,
      );
    }
    shards.set(tensor, shard);
  }
  if (shards.size === 0) {
    throw malformed(index, 'field "weight_map" must name tensors', map);
  }
  return shards;
}

/**
 * Reads the headers of a model folder: of `model.safetensors`, or of all shards that `model.safetensors.index.json`
 * names. Index and shards must agree on every tensor.
 *
 * @param folder The folder.
 * @returns One header per file.
 * @throws {SyntaxError} A file is broken.
 * @throws {Deno.errors.NotFound} There are no weights.
 */
export function readWeightHeaders(folder: string): SafetensorsHeader[] {
  const index = join(folder, INDEX_NAME);
  const single = join(folder, SINGLE_NAME);
  if (!fileExists(index)) {
    if (!fileExists(single)) {
      throw new Deno.errors.NotFound(
        `Cannot read weights as the folder must hold "${SINGLE_NAME}" or "${INDEX_NAME}": "${folder}"`,
      );
    }
    return [readSafetensorsHeader(single)];
  }
  const shardOf = readIndex(index);
  const headers = [...new Set(shardOf.values())].sort().map((shard) => {
    const file = join(folder, shard);
    if (!fileExists(file)) {
      throw malformed(index, "all files that it names must exist", shard);
    }
    return { shard, header: readSafetensorsHeader(file) };
  });
  const found = new Map<string, string>();
  for (const { shard, header } of headers) {
    for (const name of header.tensors.keys()) {
      const other = found.get(name);
      if (other !== undefined) {
        throw malformed(
          header.file,
          `tensor ${show(name)} must be in one file only`,
          other,
        );
      }
      if (shardOf.get(name) !== shard) {
        throw malformed(
          index,
          `tensor ${show(name)} of "${shard}" must be listed there`,
          shardOf.get(name) ?? "missing",
        );
      }
      found.set(name, shard);
    }
  }
  for (const [name, shard] of shardOf) {
    if (!found.has(name)) {
      throw malformed(
        join(folder, shard),
        `it must hold tensor ${show(name)}`,
        "missing",
      );
    }
  }
  return headers.map(({ header }) => header);
}

/** Rows of a tensor and bytes of each. Vectors and scalars are one row. */
function rowsOf({ shape, bytes }: TensorInfo): [rows: number, bytes: number] {
  const rows = shape.length >= 2 ? shape[0]! : 1;
  return [rows, rows === 0 ? 0 : bytes / rows];
}

/** Some rows of a tensor that are read at once. */
export interface RowPiece {
  /** Header of their file. */
  readonly header: SafetensorsHeader;
  /** The tensor. */
  readonly tensor: TensorInfo;
  /** First row. */
  readonly firstRow: number;
  /** Rows. */
  readonly rowCount: number;
  /** Where they begin in the file. */
  readonly start: number;
  /** Bytes. */
  readonly bytes: number;
}

/** Bytes of the longest row. */
export function longestRow(tensors: Iterable<TensorInfo>): number {
  let most = 0;
  for (const tensor of tensors) most = Math.max(most, rowsOf(tensor)[1]);
  return most;
}

/** Cuts tensors of a file into pieces of whole rows, of at most `most` bytes or one row, in the order of their bytes. */
export function* rowPieces(
  header: SafetensorsHeader,
  tensors: Iterable<TensorInfo>,
  most: number,
): Generator<RowPiece, void, void> {
  for (const tensor of [...tensors].sort((a, b) => a.start - b.start)) {
    if (tensor.bytes === 0) continue;
    const [rows, rowBytes] = rowsOf(tensor);
    const perPiece = Math.max(1, Math.floor(most / rowBytes));
    for (let firstRow = 0; firstRow < rows; firstRow += perPiece) {
      const rowCount = Math.min(perPiece, rows - firstRow);
      const start = tensor.start + firstRow * rowBytes;
      yield {
        ...{ header, tensor, firstRow, rowCount, start },
        bytes: rowCount * rowBytes,
      };
    }
  }
}

/** Opens a file whose header was read, which must not have changed its size. */
export function openTensors(
  { file, fileBytes }: SafetensorsHeader,
): Deno.FsFile {
  const handle = Deno.openSync(file);
  try {
    const size = sizeOf(handle);
    if (size === fileBytes) return handle;
    throw malformed(file, `it must still have ${fileBytes} bytes`, size);
  } catch (error) {
    handle.close();
    throw error;
  }
}

/** The error of a file that ended within a tensor. */
export function endedEarly(file: string, tensor: TensorInfo): SyntaxError {
  return incomplete(file, `tensor ${show(tensor.name)}`);
}

/**
 * Streams tensors through one reused buffer, as whole rows, in the order of their bytes. Breaking out of the loop
 * closes the file.
 *
 * @param header Header of the file, from {@linkcode readSafetensorsHeader}.
 * @param tensors The tensors to read; all of them when left out.
 * @param options See {@linkcode StreamOptions}.
 * @returns Chunks; their `data` is overwritten by the next one.
 * @throws {SyntaxError} The file changed since its header was read.
 */
export function* streamTensors(
  header: SafetensorsHeader,
  tensors: Iterable<TensorInfo> = header.tensors.values(),
  options: StreamOptions = {},
): Generator<TensorChunk, void, void> {
  const { bufferBytes = DEFAULT_BUFFER_BYTES } = options;
  checkBufferBytes(bufferBytes);
  const wanted = [...tensors];
  const buffer = new Uint8Array(Math.max(bufferBytes, longestRow(wanted)));
  using handle = openTensors(header);
  for (const piece of rowPieces(header, wanted, buffer.length)) {
    const { tensor, firstRow, rowCount, start, bytes } = piece;
    const data = buffer.subarray(0, bytes);
    handle.seekSync(start, Deno.SeekMode.Start);
    readFully(handle, data, header.file, `tensor ${show(tensor.name)}`);
    yield { tensor, firstRow, rowCount, data };
  }
}

/** Refuses sizes of a buffer that are none. */
export function checkBufferBytes(bytes: number): void {
  if (Number.isSafeInteger(bytes) && bytes >= 1) return;
  throw new RangeError(
    `Cannot stream tensors as bufferBytes must be a positive integer: ${bytes}`,
  );
}

/**
 * Reads a whole tensor as f32, whatever numeric type it has in the file.
 *
 * @param source The file, or its header.
 * @param name The tensor.
 * @returns Shape and values.
 * @throws {RangeError} The file has no such tensor, or its type is not a number.
 */
export function readTensor(
  source: string | SafetensorsHeader,
  name: string,
): Tensor {
  const header = typeof source === "string"
    ? readSafetensorsHeader(source)
    : source;
  const tensor = header.tensors.get(name);
  if (tensor === undefined) {
    throw new RangeError(
      `Cannot read tensor ${show(name)} as "${header.file}" must hold it: ${
        show([...header.tensors.keys()].slice(0, 8).join(", "))
      }`,
    );
  }
  const { dtype, start, bytes, file } = tensor;
  const raw = new Uint8Array(bytes);
  using handle = Deno.openSync(file);
  handle.seekSync(start, Deno.SeekMode.Start);
  readFully(handle, raw, file, `tensor ${show(name)}`);
  const data = bytesToFloats(raw, dtype);
  if (data === undefined) {
    throw new RangeError(
      `Cannot read tensor ${
        show(name)
      } of "${file}" as its type must be a number: ${dtype}`,
    );
  }
  return { dtype, shape: [...tensor.shape], data };
}

function dtypeOf(data: TensorToWrite["data"]): TensorDtype {
  if (data instanceof Float32Array) return "F32";
  if (data instanceof Float64Array) return "F64";
  if (data instanceof Int32Array) return "I32";
  if (data instanceof Uint32Array) return "U32";
  if (data instanceof Uint16Array) return "U16";
  if (data instanceof Int8Array) return "I8";
  if (data instanceof BigInt64Array) return "I64";
  return "U8";
}

/**
 * Writes a file under a temporary name beside it and renames it, so that a reader never sees half of one. Needs write
 * permission for both names (`<file>.tmp`).
 *
 * @param file The file.
 * @param tensors Tensors by name.
 * @param metadata Texts for `__metadata__`.
 * @throws {RangeError} A shape or dtype does not fit its data.
 */
export function writeSafetensors(
  file: string,
  tensors: Record<string, TensorToWrite>,
  metadata: Record<string, string> = {},
): void {
  const header: Record<string, unknown> = {};
  if (Object.keys(metadata).length > 0) header["__metadata__"] = metadata;
  let offset = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    const { shape, data } = tensor;
    const dtype = tensor.dtype ?? dtypeOf(data);
    if (
      name === "__metadata__" ||
      TENSOR_DTYPE_BYTES[dtype] !== data.BYTES_PER_ELEMENT
    ) {
      throw new RangeError(
        `Cannot write tensor ${
          show(name)
        } as its dtype must have ${data.BYTES_PER_ELEMENT} bytes: ${dtype}`,
      );
    }
    if (
      !shape.every(isSize) || shape.reduce((a, b) => a * b, 1) !== data.length
    ) {
      throw new RangeError(
        `Cannot write tensor ${
          show(name)
        } as its shape must have ${data.length} elements: ${show(shape)}`,
      );
    }
    const end = offset + data.byteLength;
    header[name] = { dtype, shape, data_offsets: [offset, end] };
    offset = end;
  }
  let text = new TextEncoder().encode(JSON.stringify(header));
  // Padded with blanks so that the tensors begin at a multiple of eight bytes.
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(0x20);
  padded.set(text);
  text = padded;
  const prefix = new Uint8Array(8);
  new DataView(prefix.buffer).setBigUint64(0, BigInt(text.length), true);
  const temporary = `${file}.tmp`;
  try {
    {
      using handle = Deno.openSync(temporary, {
        write: true,
        create: true,
        truncate: true,
      });
      const parts = [prefix, text];
      for (const { data } of Object.values(tensors)) {
        parts.push(
          new Uint8Array(
            data.buffer as ArrayBuffer,
            data.byteOffset,
            data.byteLength,
          ),
        );
      }
      for (const part of parts) {
        for (let done = 0; done < part.length;) {
          done += handle.writeSync(part.subarray(done));
        }
      }
    }
    Deno.renameSync(temporary, file);
  } catch (error) {
    try {
      Deno.removeSync(temporary);
    } catch {
      // The first error is the one to report.
    }
    throw error;
  }
}
