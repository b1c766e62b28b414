/**
 * Products of vectors with a matrix for each head, by one thread: a chunk of rows of one head.
 *
 * @module
 */
import type { Blas } from "./blas.ts";
import { chunksOf, type Project } from "./job.ts";
import { chunk } from "./sight.ts";

/** Gives what computes one item of a job. */
export const project = (blas: Blas, { product }: Project): (item: number) => void => {
  const { rows, inner, columns, from, matrix, into } = product;
  return (item) => {
    // One head after the other, whose matrix stays in a cache.
    const [h, index] = [Math.floor(item / chunksOf(rows)), item % chunksOf(rows)];
    const [first, end] = chunk(index, rows);
    const at = ({ values, first: begin, row, head }: typeof from, r: number) => ({
      at: values.subarray(begin + h * head + r * row),
      stride: row,
    });
    blas.product(
      [end - first, columns, inner],
      1,
      at(from, first),
      // What a product calls turned is how M is given.
      { ...at(matrix, 0), turned: !matrix.turned },
      at(into, first),
      false,
    );
  };
};
