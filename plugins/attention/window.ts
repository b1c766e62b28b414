/**
 * Sliding-window attention, as in Mistral: each query sees itself and the `size − 1` tokens before it. A window longer
 * than the sequence is plain causal attention.
 *
 * Source: Beltagy et al. 2020 (Longformer), Jiang et al. 2023 (Mistral 7B).
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys q − size < k ≤ q. */
export default defineAttention({
  name: "window",
  contract: 1,
  module: import.meta.url,
  params: { size: int({ least: 1, most: 2 ** 29 }) },
  examples: () => [{ size: 1 }, { size: 5 }, { size: 40 }],
  mask: ({ size }) => (_b, _h, q, k) => k <= q && q - k < size,
  band: ({ size }) => ({ back: size - 1, ahead: 0 }),
  bandSaysAll: true,
  wgsl: { mask: "return k <= q && q - k < size;" },
});
