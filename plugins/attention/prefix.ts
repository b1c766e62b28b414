/**
 * Prefix-LM attention: the first `length` tokens see each other in both directions, what follows is causal.
 *
 * Source: Raffel et al. 2020 (T5).
 *
 * @module
 */
import { unbounded } from "../../runtime/mask.ts";
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys k ≤ q and those of the prefix, k < length. */
export default defineAttention({
  name: "prefix",
  contract: 1,
  module: import.meta.url,
  params: { length: int({ least: 0 }) },
  examples: () => [{ length: 0 }, { length: 1 }, { length: 13 }],
  mask: ({ length }) => (_b, _h, q, k) => k <= q || k < length,
  band: ({ length }) => ({ back: unbounded, ahead: Math.min(Math.max(length - 1, 0), unbounded) }),
  tile: ({ length }) => (queries, keys) => {
    if (keys.last < length || keys.last <= queries.first) return "all";
    return keys.first >= length && keys.first > queries.last ? "none" : "some";
  },
  wgsl: { mask: "return k <= q || k < length;" },
});
