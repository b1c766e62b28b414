/**
 * Log-n scaling: the farther a query is beyond the length of training, the larger its scores, so that attention does not
 * flatten over long sequences.
 *
 * Source: Chiang and Cholak 2022; Su 2021; as in Qwen.
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

/** The score s of query q becomes s · max(1, ln(q + 1) / ln(trained)). */
export default defineAttention({
  name: "log-n",
  contract: 1,
  module: import.meta.url,
  params: { trained: int({ least: 2 }) },
  examples: () => [{ trained: 2 }, { trained: 20 }],
  score: ({ trained }) => (s, _b, _h, q) => s * Math.max(1, Math.log(q + 1) / Math.log(trained)),
  slope: ({ trained }) => (_s, _b, _h, q) => Math.max(1, Math.log(q + 1) / Math.log(trained)),
  wgsl: {
    score: "return s * max(1.0, log(f32(q + 1)) / log(f32(trained)));",
    slope: "return max(1.0, log(f32(q + 1)) / log(f32(trained)));",
  },
});
