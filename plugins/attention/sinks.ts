/**
 * Attention sinks as a learned logit, as in gpt-oss: each head has one more key, without a value, to which queries may give
 * what they have no use for.
 *
 * @module
 */
import { defineAttention, floats } from "../../runtime/variant.ts";

/** To the sum below each softmax of head h comes exp(logits[h]); the log-sum-exp has it as well. */
export default defineAttention({
  name: "sinks",
  contract: 1,
  module: import.meta.url,
  params: { logits: floats() },
  examples: ({ heads }) => [
    { logits: Array.from({ length: heads }, (_, h) => h - 1) },
    { logits: Array.from({ length: heads }, (_, h) => 3 - h / 2) },
  ],
  refuse: ({ logits }, { heads }) =>
    logits.length === heads
      ? undefined
      : `a logit for each of the ${heads} query heads: found ${logits.length}`,
  sink: ({ logits }) => (h) => logits[h]!,
});
