/**
 * Dilated sliding-window attention: each query sees itself and every `step`-th token before it, `size` in all.
 *
 * Source: Beltagy et al. 2020 (Longformer).
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys q − j · step for 0 ≤ j < size. */
export default defineAttention({
  name: "dilated",
  contract: 1,
  module: import.meta.url,
  params: { size: int({ least: 1, most: 2 ** 20 }), step: int({ least: 1, most: 2 ** 10 }) },
  examples: () => [{ size: 4, step: 3 }, { size: 1, step: 9 }, { size: 9, step: 1 }],
  mask: ({ size, step }) => (_b, _h, q, k) => k <= q && (q - k) % step === 0 && q - k < size * step,
  band: ({ size, step }) => ({ back: (size - 1) * step, ahead: 0 }),
  tile: ({ size, step }) => (queries, keys) => {
    if (keys.first > queries.last || queries.first - keys.last >= size * step) return "none";
    const near = keys.last <= queries.first && queries.last - keys.first < size * step;
    return step === 1 && near ? "all" : "some";
  },
  wgsl: { mask: "return k <= q && (q - k) % step == 0 && q - k < size * step;" },
});
