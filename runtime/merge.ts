/**
 * Merging what query rows have gathered of different keys: a weighted mean of the outputs, by what each has below its
 * softmax.
 *
 * Source: Rabe and Staats 2021, "Self-attention Does Not Need O(n²) Memory", section 2, with log-sum-exps in place of
 * maxima and sums.
 *
 * @module
 */
import type { Attended } from "./kernel.ts";

/** Rows of a result: its shape, but for the head dimension, which follows from its length. */
export interface Rows {
  readonly heads: number;
  readonly tokens: number;
}

/**
 * Adds to every row what other keys have given it, in place: a sum of exp(score) whose logarithm is `lse(row)`, and the
 * output `o(at + c)`, if there is one.
 *
 * @param lse By row of [batch, heads, tokens] and its query head; −∞ where the row saw none of these keys.
 * @param o By element of [batch, tokens, heads, headDim].
 */
export const addKeys = (
  into: Attended,
  { heads, tokens }: Rows,
  lse: (row: number, head: number) => number,
  o?: Float32Array,
): void => {
  if (into.lse.length === 0) return;
  const headDim = into.o.length / into.lse.length;
  for (let row = 0; row < into.lse.length; row++) {
    const head = Math.floor(row / tokens) % heads;
    const [own, other] = [into.lse[row]!, lse(row, head)];
    const top = Math.max(own, other);
    if (top === -Infinity) continue; // no key so far
    const [mine, theirs] = [Math.exp(own - top), Math.exp(other - top)];
    const sum = mine + theirs;
    into.lse[row] = top + Math.log(sum);
    const [keep, add] = [mine / sum, theirs / sum];
    const batch = Math.floor(row / (heads * tokens));
    const from = ((batch * tokens + row % tokens) * heads + head) * headDim;
    for (let at = from; at < from + headDim; at++) {
      into.o[at] = into.o[at]! * keep + (o === undefined ? 0 : o[at]! * add);
    }
  }
};

/** Adds what the same rows have gathered of other keys, in place. */
export const merge = (into: Attended, other: Attended, rows: Rows): void =>
  addKeys(into, rows, (row) => other.lse[row]!, other.o);
