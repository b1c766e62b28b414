/**
 * A temperature per head: scores are divided by it.
 *
 * @module
 */
import { defineAttention, floats } from "../../runtime/variant.ts";

/** The score s in head h becomes s / temperatures[h]. */
export default defineAttention({
  name: "temperature",
  contract: 1,
  module: import.meta.url,
  params: { temperatures: floats() },
  examples: ({ heads }) => [
    { temperatures: Array.from({ length: heads }, (_, h) => 0.5 + h / 4) },
    { temperatures: Array.from({ length: heads }, (_, h) => h % 2 === 0 ? 2 : -1) },
  ],
  refuse: ({ temperatures }, { heads }) => {
    if (temperatures.length !== heads) {
      return `a temperature for each of the ${heads} query heads: found ${temperatures.length}`;
    }
    const zero = Array.from(temperatures).findIndex((x) => !(Math.abs(x) >= 1e-6));
    if (zero < 0) return;
    return `temperatures of at least 1e-6 in size: found ${temperatures[zero]} at index ${zero}`;
  },
  score: ({ temperatures }) => (s, _b, h) => s / temperatures[h]!,
  slope: ({ temperatures }) => (_s, _b, h) => 1 / temperatures[h]!,
  wgsl: { score: "return s / temperatures[h];", slope: "return 1.0 / temperatures[h];" },
});
