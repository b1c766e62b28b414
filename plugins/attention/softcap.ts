/**
 * A soft cap on logits, as in Gemma 2: no score exceeds `cap` in size.
 *
 * @module
 */
import { defineAttention, float } from "../../runtime/variant.ts";

/** The score s becomes cap · tanh(s / cap). */
export default defineAttention({
  name: "softcap",
  contract: 1,
  module: import.meta.url,
  params: { cap: float({ least: 1e-3 }) },
  examples: () => [{ cap: 0.5 }, { cap: 2 }, { cap: 50 }, { cap: 1e4 }],
  score: ({ cap }) => (s) => cap * Math.tanh(s / cap),
  slope: ({ cap }) => (s) => 1 - Math.tanh(s / cap) ** 2,
  // Where tanh is 1 in float32, its argument may be so large that some drivers' tanh is no number. Near 0 some are wrong by
  // 2⁻²⁴, which a large cap would multiply: there the first terms of its series are right to the last bit but one.
  wgsl: {
    score: `let x = clamp(s / cap, -20.0, 20.0);
let y = x * x;
let series = 1.0 - y * (1.0 / 3.0 - y * (2.0 / 15.0 - y * (17.0 / 315.0 - y * (62.0 / 2835.0))));
return select(cap * tanh(x), s * series, abs(x) < 0.3);`,
    slope: "let t = tanh(clamp(s / cap, -20.0, 20.0)); return 1.0 - t * t;",
  },
});
