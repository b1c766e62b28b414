/**
 * One more key without a value, to which a query may give what it has no use for: it makes the sum below the softmax
 * larger and adds nothing to the output, so that it can come last, wherever the other keys were.
 *
 * @module
 */
import type { Attended } from "./kernel.ts";

/**
 * Adds the key to what query rows have gathered, in place.
 *
 * @param heads Of `o`, [batch, tokens, heads, headDim].
 * @param logit Its logit by query head.
 */
export const addSink = (
  { o, lse }: Attended,
  heads: number,
  tokens: number,
  logit: (h: number) => number,
): void => {
  if (lse.length === 0) return;
  const headDim = o.length / lse.length;
  for (let i = 0; i < lse.length; i++) {
    const [b, h, token] = [
      Math.floor(i / (heads * tokens)),
      Math.floor(i / tokens) % heads,
      i % tokens,
    ];
    const [own, extra] = [lse[i]!, logit(h)];
    const top = Math.max(own, extra);
    const sum = Math.exp(own - top) + Math.exp(extra - top);
    lse[i] = top + Math.log(sum);
    const share = Math.exp(own - top) / sum;
    const from = ((b * tokens + token) * heads + h) * headDim;
    for (let c = from; c < from + headDim; c++) o[c]! *= share;
  }
};
