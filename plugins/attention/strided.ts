/**
 * Strided sparse attention: each query sees the last `local` tokens and, of those before, every `stride`-th.
 *
 * Source: Child et al. 2019 (Sparse Transformers).
 *
 * @module
 */
import { unbounded } from "../../runtime/mask.ts";
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys k ≤ q with q − k < local or (q − k) mod stride = 0. */
export default defineAttention({
  name: "strided",
  contract: 1,
  module: import.meta.url,
  params: { local: int({ least: 1 }), stride: int({ least: 1 }) },
  examples: () => [{ local: 1, stride: 3 }, { local: 8, stride: 5 }, { local: 4, stride: 1 }],
  mask: ({ local, stride }) => (_b, _h, q, k) =>
    k <= q && (q - k < local || (q - k) % stride === 0),
  band: () => ({ back: unbounded, ahead: 0 }),
  tile: ({ local, stride }) => (queries, keys) => {
    if (keys.first > queries.last) return "none";
    if (keys.last <= queries.first && (stride === 1 || queries.last - keys.first < local)) {
      return "all";
    }
    return "some";
  },
  wgsl: { mask: "return k <= q && (q - k < local || (q - k) % stride == 0);" },
});
