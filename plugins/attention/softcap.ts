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
  examples: () => [{ cap: 0.5 }, { cap: 2 }, { cap: 50 }],
  score: ({ cap }) => (s) => cap * Math.tanh(s / cap),
  slope: ({ cap }) => (s) => 1 - Math.tanh(s / cap) ** 2,
  // Where tanh is 1 in float32, its argument may be so large that some drivers' tanh is no number.
  wgsl: {
    score: "return cap * tanh(clamp(s / cap, -20.0, 20.0));",
    slope: "let t = tanh(clamp(s / cap, -20.0, 20.0)); return 1.0 - t * t;",
  },
});
