/**
 * Products of vectors with one matrix for each head: what latent attention needs beside attention.
 *
 * @module
 */

/** Vectors by row and head, somewhere in an array; all in elements. */
export interface HeadVectors {
  /** May lie in shared memory. */
  readonly values: Float32Array;
  readonly first: number;
  /** From one row to the next. */
  readonly row: number;
  /** From one head to the next; 0 where all have the same. */
  readonly head: number;
}

/** into[r, h] = M[h] · from[r, h], of `columns` and `inner` components; with `turned`, M is given as its transpose. */
export interface HeadProduct {
  readonly rows: number;
  readonly heads: number;
  readonly inner: number;
  readonly columns: number;
  readonly from: HeadVectors;
  /** `row` is from one row of M to the next as it is given. */
  readonly matrix: HeadVectors & { readonly turned: boolean };
  readonly into: HeadVectors;
}

/** The product in plain loops and float64. */
export const headProduct = (
  { rows, heads, inner, columns, from, matrix, into }: HeadProduct,
): void => {
  const [across, along] = matrix.turned ? [1, matrix.row] : [matrix.row, 1];
  for (let h = 0; h < heads; h++) {
    for (let r = 0; r < rows; r++) {
      const vector = from.first + r * from.row + h * from.head;
      const target = into.first + r * into.row + h * into.head;
      for (let j = 0; j < columns; j++) {
        let at = matrix.first + h * matrix.head + j * across;
        let sum = 0;
        for (let i = 0; i < inner; i++, at += along) {
          sum += from.values[vector + i]! * matrix.values[at]!;
        }
        into.values[target + j] = sum;
      }
    }
  }
};
