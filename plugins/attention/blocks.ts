/**
 * Block-sparse attention from a table: the sequence is cut into blocks of `size` tokens, and the table says which blocks
 * of keys each block of queries sees.
 *
 * Source: Child et al. 2019, Zaheer et al. 2020 (BigBird).
 *
 * @module
 */
import { defineAttention, int, ints, type Range } from "../../runtime/variant.ts";

/** Query q sees key k where `table[⌊q / size⌋ · n + ⌊k / size⌋]` is 1, for n = ⌈tokens / size⌉ blocks. */
export default defineAttention({
  name: "blocks",
  contract: 1,
  module: import.meta.url,
  params: { size: int({ least: 1 }), table: ints({ least: 0, most: 1 }) },
  examples: ({ tokens }) => {
    const size = Math.ceil(tokens / 3); // and so many blocks, also where they are a token longer
    const diagonal = [1, 0, 0, 0, 1, 0, 0, 0, 1], some = [0, 1, 0, 0, 0, 0, 1, 1, 1];
    return [{ size, table: diagonal }, { size, table: some }, { size: size + 1, table: some }];
  },
  refuse: ({ size, table }, { tokens }) => {
    const n = Math.ceil(tokens / size);
    if (table.length === n * n) return;
    return `a table of ${n} × ${n} blocks of ${size} of the ${tokens} tokens, ${n * n} numbers: ` +
      `found ${table.length}`;
  },
  precompute: {
    params: { across: int() },
    from: ({ size }, { tokens }) => ({ across: Math.ceil(tokens / size) }),
  },
  mask: ({ size, table, across }) => (_b, _h, q, k) =>
    table[Math.floor(q / size) * across + Math.floor(k / size)] === 1,
  tile: ({ size, table, across }) => (queries, keys) => {
    const blocks = ({ first, last }: Range) => [Math.floor(first / size), Math.floor(last / size)];
    const [q0, q1] = blocks(queries);
    const [k0, k1] = blocks(keys);
    let [none, all] = [true, true];
    for (let q = q0!; q <= q1!; q++) {
      for (let k = k0!; k <= k1!; k++) {
        if (table[q * across + k] === 1) none = false;
        else all = false;
        if (!none && !all) return "some";
      }
    }
    return all ? "all" : "none";
  },
  wgsl: { mask: "return table[q / size * across + k / size] == 1;" },
});
