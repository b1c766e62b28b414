/**
 * Packed documents: several documents in one sequence, none of which sees another. Documents may be empty, and may cross
 * the boundaries of shards anywhere.
 *
 * @module
 */
import { defineAttention, ints } from "../../runtime/variant.ts";

/** The document of each token. */
const documentsOf = (bounds: ArrayLike<number>, tokens: number): Int32Array => {
  const documents = new Int32Array(tokens);
  for (let i = 0; i + 1 < bounds.length; i++) documents.fill(i, bounds[i], bounds[i + 1]);
  return documents;
};

/** Query q sees the keys of its own document; document i has the tokens `cu_seqlens[i]` … `cu_seqlens[i + 1] − 1`. */
export default defineAttention({
  name: "documents",
  contract: 1,
  module: import.meta.url,
  params: { cu_seqlens: ints() },
  examples: ({ tokens }) => [
    { cu_seqlens: [0, tokens] },
    { cu_seqlens: [0, 1, 1, Math.floor(tokens / 3), Math.floor(tokens / 2), tokens, tokens] },
  ],
  refuse: ({ cu_seqlens: bounds }, { tokens }) => {
    if (bounds.length < 2) {
      return `cu_seqlens of at least two numbers, 0 and ${tokens}: found ${bounds.length}`;
    }
    if (bounds[0] !== 0) return `cu_seqlens[0] to be 0: found ${bounds[0]}`;
    for (let i = 1; i < bounds.length; i++) {
      if (bounds[i]! >= bounds[i - 1]!) continue;
      return `cu_seqlens that never decrease: found ${bounds[i]} at index ${i}, after ${
        bounds[i - 1]
      }`;
    }
    const last = bounds.length - 1;
    if (bounds[last] === tokens) return;
    return `cu_seqlens[${last}] to be the sequence length, ${tokens}: found ${bounds[last]}`;
  },
  precompute: {
    params: { document: ints() },
    from: ({ cu_seqlens }, { tokens }) => ({ document: documentsOf(cu_seqlens, tokens) }),
  },
  mask: ({ document }) => (_b, _h, q, k) => document[q] === document[k],
  tile: ({ document }) => (queries, keys) => {
    // Documents ascend: those of a range are an interval.
    const [q0, q1] = [document[queries.first]!, document[queries.last]!];
    const [k0, k1] = [document[keys.first]!, document[keys.last]!];
    if (k0 > q1 || k1 < q0) return "none";
    return q0 === q1 && k0 === q0 && k1 === q0 ? "all" : "some";
  },
  wgsl: { mask: "return document[q] == document[k];" },
});
