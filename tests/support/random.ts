/**
 * Random numbers that are the same in every run.
 *
 * @module
 */

/** Uniform numbers in [0, 1) from a 32-bit seed. */
export const uniform = (seed: number): () => number => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
};

/** `count` standard normal numbers. */
export const normals = (seed: number, count: number): Float32Array<ArrayBuffer> => {
  const next = uniform(seed);
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
  );
};
