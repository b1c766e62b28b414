/**
 * A sliding window and the first tokens of the sequence, as in StreamingLLM: models put attention that they have no use
 * for on the first tokens, and fall apart where a window takes these away.
 *
 * Source: Xiao et al. 2023 (StreamingLLM).
 *
 * @module
 */
import { unbounded } from "../../runtime/mask.ts";
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys q − size < k ≤ q, and of the keys k ≤ q the first `first`. */
export default defineAttention({
  name: "sink-window",
  contract: 1,
  module: import.meta.url,
  params: { first: int({ least: 0 }), size: int({ least: 1 }) },
  examples: () => [{ first: 4, size: 9 }, { first: 0, size: 1 }, { first: 70, size: 5 }],
  mask: ({ first, size }) => (_b, _h, q, k) => k <= q && (k < first || q - k < size),
  band: () => ({ back: unbounded, ahead: 0 }),
  tile: ({ first, size }) => (queries, keys) => {
    const outside = keys.first >= first && queries.first - keys.last >= size;
    if (keys.first > queries.last || outside) return "none";
    const inside = keys.last < first || queries.last - keys.first < size;
    return inside && keys.last <= queries.first ? "all" : "some";
  },
  wgsl: { mask: "return k <= q && (k < first || q - k < size);" },
});
