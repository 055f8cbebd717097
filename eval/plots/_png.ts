/**
 * A PNG file from pixels.
 *
 * Format: https://www.w3.org/TR/png-3/
 *
 * @module
 */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Check sum of a chunk (CRC-32, reversed polynomial 0xedb88320). */
function checkSum(bytes: Uint8Array): number {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      sum = sum >>> 1 ^ (sum & 1 ? 0xedb88320 : 0);
    }
  }
  return ~sum >>> 0;
}

function chunk(kind: string, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + data.length);
  const numbers = new DataView(bytes.buffer);
  numbers.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(data, 8);
  numbers.setUint32(
    8 + data.length,
    checkSum(bytes.subarray(4, 8 + data.length)),
  );
  return bytes;
}

/**
 * Encodes an image.
 *
 * @param pixels Red, green, blue and opacity of each pixel, row by row: `[height, width, 4]`.
 * @param width Pixels of a row.
 */
export async function encodePng(
  pixels: Uint8Array,
  width: number,
): Promise<Uint8Array> {
  const height = pixels.length / 4 / width;
  const header = new Uint8Array(13);
  const numbers = new DataView(header.buffer);
  numbers.setUint32(0, width);
  numbers.setUint32(4, height);
  header.set([8, 6, 0, 0, 0], 8);
  // Every row begins with its filter: none.
  const rows = new Uint8Array((4 * width + 1) * height);
  for (let y = 0; y < height; y++) {
    rows.set(
      pixels.subarray(4 * width * y, 4 * width * (y + 1)),
      (4 * width + 1) * y + 1,
    );
  }
  const deflated = new Blob([rows]).stream()
    .pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());
  const parts = [
    Uint8Array.from(SIGNATURE),
    chunk("IHDR", header),
    chunk("IDAT", data),
    chunk("IEND", new Uint8Array(0)),
  ];
  return new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
}
