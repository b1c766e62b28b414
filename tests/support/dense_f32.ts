/**
 * Plain dense attention in float32, rounding after every operation: the error that any float32 method may have. Where
 * logits are large, a device is held to a multiple of it.
 *
 * @module
 */
import type { Problem } from "../../runtime/plan.ts";
import { allows } from "../../runtime/mask.ts";
import { bandOf } from "./masks.ts";

const f = Math.fround;

/** `o` [batch, tokens, heads, headDim] and `lse` [batch, heads, tokens], as `denseAttention` gives them. */
export const denseFloat32 = (
  problem: Problem,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
): { readonly o: Float32Array; readonly lse: Float32Array } => {
  const { batch, tokens, heads, kvHeads, headDim, scale } = problem;
  const band = bandOf(problem.attention);
  const o = new Float32Array(batch * tokens * heads * headDim);
  const lse = new Float32Array(batch * heads * tokens);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const g = Math.floor(h * kvHeads / heads);
      for (let i = 0; i < tokens; i++) {
        const row = ((b * tokens + i) * heads + h) * headDim;
        const seen = Array.from({ length: tokens }, (_, j) => j).filter((j) => allows(band, i, j));
        const at = seen.map((j) => ((b * tokens + j) * kvHeads + g) * headDim);
        const scores = at.map((key) => {
          let score = 0;
          for (let c = 0; c < headDim; c++) score = f(score + f(q[row + c]! * k[key + c]!));
          return f(score * f(scale));
        });
        const highest = scores.reduce((a, x) => Math.max(a, x), -Infinity);
        const weights = scores.map((x) => f(Math.exp(f(x - highest))));
        const sum = weights.reduce((a, x) => f(a + x), 0);
        lse[(b * heads + h) * tokens + i] = f(highest + f(Math.log(sum)));
        for (let c = 0; c < headDim; c++) {
          let out = 0;
          at.forEach((value, s) => out = f(out + f(weights[s]! * v[value + c]!)));
          o[row + c] = f(out / sum);
        }
      }
    }
  }
  return { o, lse };
};
