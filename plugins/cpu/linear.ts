/**
 * Products of vectors with a weight, by one thread: some columns of the result. A weight of 16-bit elements is widened
 * tile by tile, in memory that a core's second-level cache holds.
 *
 * @module
 */
import type { Blas } from "./blas.ts";
import { columnsAtOnce, type Multiply } from "./job.ts";
import { type Softmax, tileElements } from "./softmax.ts";

/** With fewer rows than this, moving the weight is what takes the time, and whole rows of it move fastest. */
const manyRows = 12;
/** Columns of a tile of the weight, with many rows. */
const columnsWide = 128;

/** Gives what computes one item of a job. */
export const multiply = (
  blas: Blas,
  softmax: Softmax,
  { linear }: Multiply,
): (item: number) => void => {
  const { rows, inner, columns, x, weight: { dtype, values }, into } = linear;
  const each = columnsAtOnce(columns);
  const [wide, narrow] = softmax.tiles;
  const halves = new Uint16Array(narrow.values.buffer, narrow.pointer, tileElements);

  return (item) => {
    const left = item * each;
    const right = Math.min(columns, left + each);
    const product = (
      column: number,
      count: number,
      from: number,
      length: number,
      w: { readonly at: Float32Array; readonly stride: number },
    ) =>
      blas.product(
        [rows, count, length],
        1,
        { at: x.subarray(from), stride: inner },
        { ...w, turned: true },
        { at: into.subarray(column), stride: columns },
        from > 0,
      );
    if (dtype === "f32") {
      const at = (values as Float32Array).subarray(left * inner);
      return product(left, right - left, 0, inner, { at, stride: inner });
    }
    const along = Math.min(
      inner,
      rows < manyRows ? tileElements : tileElements / columnsWide,
    );
    const across = Math.floor(tileElements / along);
    for (let column = left; column < right; column += across) {
      const count = Math.min(across, right - column);
      for (let from = 0; from < inner; from += along) {
        const length = Math.min(along, inner - from);
        if (length === inner) {
          const begin = column * inner;
          halves.set((values as Uint16Array).subarray(begin, begin + count * inner));
        } else {
          for (let c = 0; c < count; c++) {
            const begin = (column + c) * inner + from;
            halves.set((values as Uint16Array).subarray(begin, begin + length), c * length);
          }
        }
        softmax.widen(dtype, 4 * Math.ceil(count * length / 4));
        product(column, count, from, length, { at: wide.values, stride: length });
      }
    }
  };
};
