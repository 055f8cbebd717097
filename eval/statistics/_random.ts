/**
 * A small seeded generator, so that every interval can be computed again.
 *
 * @module
 */

/**
 * Uniform 32-bit integers: the generator sfc32 (Chris Doty-Humphrey, PractRand), seeded with a counter that it is run
 * in for twelve steps.
 */
export function seededBits(seed: number): () => number {
  let a = 0x9e3779b9;
  let b = 0x243f6a88;
  let c = seed | 0;
  let counter = 1;
  const next = (): number => {
    const out = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + out | 0;
    return out >>> 0;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}
