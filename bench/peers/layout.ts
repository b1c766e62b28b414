/**
 * Libraries differ in whether heads or tokens come first.
 *
 * @module
 */
import type { Shape } from "../job.ts";

const turned = (x: Float32Array, outer: number, inner: number, width: number): Float32Array => {
  const y = new Float32Array(x.length);
  for (let i = 0; i < outer; i++) {
    for (let j = 0; j < inner; j++) {
      const from = (i * inner + j) * width;
      y.set(x.subarray(from, from + width), (j * outer + i) * width);
    }
  }
  return y;
};

/** [tokens, heads, headDim] as [heads, tokens, headDim]. */
export const headsFirst = ({ heads, tokens, headDim }: Shape, x: Float32Array): Float32Array =>
  turned(x, tokens, heads, headDim);

/** [heads, tokens, headDim] as [tokens, heads, headDim]. */
export const tokensFirst = ({ heads, tokens, headDim }: Shape, x: Float32Array): Float32Array =>
  turned(x, heads, tokens, headDim);
