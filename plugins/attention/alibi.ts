/**
 * ALiBi: instead of positional embeddings, a penalty that grows with the distance, with a slope of its own per head.
 *
 * Source: Press et al. 2021.
 *
 * @module
 */
import { defineAttention, floats } from "../../runtime/variant.ts";

/** The slopes of the paper: 2^(−8/n), 2^(−16/n), … for n heads, where n is a power of two, and filled up from 2n else. */
export const alibiSlopes = (heads: number): ReadonlyArray<number> => {
  const n = 2 ** Math.floor(Math.log2(heads));
  const geometric = (count: number) =>
    Array.from({ length: count }, (_, i) => 2 ** (-8 * (i + 1) / count));
  return [...geometric(n), ...geometric(2 * n).filter((_, i) => i % 2 === 0)].slice(0, heads);
};

/** The score of q and k in head h becomes s − slopes[h] · |q − k|. */
export default defineAttention({
  name: "alibi",
  contract: 1,
  module: import.meta.url,
  params: { slopes: floats() },
  defaults: ({ heads }) => ({ slopes: alibiSlopes(heads) }),
  examples: ({ heads }) => [
    { slopes: alibiSlopes(heads) },
    { slopes: Array.from({ length: heads }, (_, h) => (h - 1) / 8) },
  ],
  refuse: ({ slopes }, { heads }) =>
    slopes.length === heads
      ? undefined
      : `a slope for each of the ${heads} query heads: found ${slopes.length}`,
  score: ({ slopes }) => (s, _b, h, q, k) => s - slopes[h]! * Math.abs(q - k),
  slope: () => () => 1,
  wgsl: { score: "return s - slopes[h] * f32(abs(q - k));", slope: "return 1.0;" },
});
