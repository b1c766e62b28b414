/**
 * Products of vectors with a weight as it is held: what decoders compute most.
 *
 * @module
 */
import { decodeInto, type DType } from "./dtype.ts";

/** Elements in memory that may be shared, in their own format: 16 bits each unless that is f32. */
export interface Held {
  readonly dtype: DType;
  readonly values: Float32Array | Uint16Array;
}

/** into = x Wᵀ, where x is [rows, inner], W [columns, inner] and into [rows, columns]. */
export interface Linear {
  readonly rows: number;
  readonly inner: number;
  readonly columns: number;
  readonly x: Float32Array;
  readonly weight: Held;
  readonly into: Float32Array;
}

/** Elements `from` … `to` as float32 values: where they are not just that, a copy in memory that may be given. */
export const widened = (
  { dtype, values }: Held,
  from: number,
  to: number,
  into = new Float32Array(values instanceof Float32Array ? 0 : to - from),
): Float32Array => {
  const some = values.subarray(from, to);
  if (some instanceof Float32Array) return some;
  decodeInto(into, dtype, new Uint8Array(some.buffer, some.byteOffset, some.byteLength));
  return into;
};

/** The product in plain loops and float64. */
export const linear = ({ rows, inner, columns, x, weight, into }: Linear): void => {
  const scratch = new Float32Array(inner);
  for (let column = 0; column < columns; column++) {
    const w = widened(weight, column * inner, (column + 1) * inner, scratch);
    for (let row = 0, at = 0; row < rows; row++) {
      let sum = 0;
      for (let i = 0; i < inner; i++, at++) sum += x[at]! * w[i]!;
      into[row * columns + column] = sum;
    }
  }
};
