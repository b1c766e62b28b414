/**
 * An attention whose band leaves out the queries themselves, so that nobody asks its mask and the first rows see no key.
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys q − reach ≤ k ≤ q − gap. */
export default defineAttention({
  name: "past",
  contract: 1,
  module: import.meta.url,
  params: { gap: int({ least: 1 }), reach: int({ least: 1 }) },
  mask: ({ gap, reach }) => (_b, _h, q, k) => q - k >= gap && q - k <= reach,
  band: ({ gap, reach }) => ({ back: reach, ahead: -gap }),
  bandSaysAll: true,
  wgsl: { mask: "return q - k >= gap && q - k <= reach;" },
});
