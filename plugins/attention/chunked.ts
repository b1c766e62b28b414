/**
 * Chunked-local attention, as in Llama 4: the sequence is cut into chunks of `size` tokens, none of which sees another.
 * Compose it with `causal`.
 *
 * @module
 */
import { defineAttention, int } from "../../runtime/variant.ts";

/** Query q sees the keys of its own chunk. */
export default defineAttention({
  name: "chunked",
  contract: 1,
  module: import.meta.url,
  params: { size: int({ least: 1 }) },
  examples: () => [{ size: 1 }, { size: 7 }, { size: 64 }],
  mask: ({ size }) => (_b, _h, q, k) => Math.floor(q / size) === Math.floor(k / size),
  band: ({ size }) => ({ back: size - 1, ahead: size - 1 }),
  tile: ({ size }) => (queries, keys) => {
    const chunk = (position: number) => Math.floor(position / size);
    const [q0, q1] = [chunk(queries.first), chunk(queries.last)];
    const [k0, k1] = [chunk(keys.first), chunk(keys.last)];
    if (k0 > q1 || k1 < q0) return "none";
    return q0 === q1 && k0 === q0 && k1 === q0 ? "all" : "some";
  },
  wgsl: { mask: "return q / size == k / size;" },
});
