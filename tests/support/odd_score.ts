/**
 * An attention whose score is no number for one pair.
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

export default defineAttention({
  name: "odd-score",
  contract: 1,
  module: import.meta.url,
  params: { token: int() },
  score: ({ token }) => (s, _b, h, q, k) => h === 1 && q === token && k === 5 ? NaN : s,
  slope: () => () => 1,
  wgsl: {
    // Nothing that compilers may fold.
    score: "if (h == 1 && q == token && k == 5) { return log(min(s, 0.0) - 1.0); } return s;",
    slope: "return 1.0;",
  },
});
