/**
 * Rows of numbers behind one another: as they cross to a device or a link at once, taken apart again, and made wider.
 *
 * @module
 */

/** Arrays behind one another; the array itself where there is one. */
export const concatenated = (arrays: ReadonlyArray<Float32Array>): Float32Array => {
  if (arrays.length === 1) return arrays[0]!;
  const all = new Float32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
};

/** Stretches of these lengths. */
export const apart = <A extends Float32Array>(
  all: A,
  lengths: ReadonlyArray<number>,
): ReadonlyArray<A> => {
  let at = 0;
  return lengths.map((length) => all.subarray(at, at += length) as A);
};

/** Rows of `to` numbers each, with zeros at their ends or without what is too much; the array itself where they are so wide. */
export const resized = (all: Float32Array, from: number, to: number): Float32Array => {
  if (from === to) return all;
  const rows = all.length / from;
  const into = new Float32Array(rows * to);
  const width = Math.min(from, to);
  for (let row = 0; row < rows; row++) {
    into.set(all.subarray(row * from, row * from + width), row * to);
  }
  return into;
};
