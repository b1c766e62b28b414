/**
 * Causal attention: each query sees itself and what comes before it.
 *
 * @module
 */
import { unbounded } from "../../runtime/mask.ts";
import { defineAttention } from "../../runtime/variant.ts";

/** Query q sees the keys k ≤ q. */
export default defineAttention({
  name: "causal",
  contract: 1,
  module: import.meta.url,
  mask: () => (_b, _h, q, k) => k <= q,
  band: () => ({ back: unbounded, ahead: 0 }),
  bandSaysAll: true,
  wgsl: { mask: "return k <= q;" },
});
