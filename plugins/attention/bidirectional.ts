/**
 * Bidirectional attention, as encoders have it: each query sees every key. It is what no variant at all gives.
 *
 * @module
 */
import { unbounded } from "../../runtime/mask.ts";
import { defineAttention } from "../../runtime/variant.ts";

/** Every query sees every key. */
export default defineAttention({
  name: "bidirectional",
  contract: 1,
  module: import.meta.url,
  mask: () => () => true,
  band: () => ({ back: unbounded, ahead: unbounded }),
  bandSaysAll: true,
  wgsl: { mask: "return true;" },
});
