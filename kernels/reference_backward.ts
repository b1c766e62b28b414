/**
 * The backward pass of attention in plain loops and float64, one (query, key) pair after the other: what every device
 * computes, in the order in which it is written in papers.
 *
 * @module
 */
import { decode } from "../runtime/dtype.ts";
import type { BackwardPass, KeyValues, Outcome, Queries, Tile } from "../runtime/kernel.ts";
import type { Band } from "../runtime/mask.ts";
import { countUpTo, positionAt } from "../runtime/span.ts";

/** Σ x[at + c] · y[from + c]. */
const dot = (
  x: ArrayLike<number>,
  at: number,
  y: ArrayLike<number>,
  from: number,
  length: number,
): number => {
  // Four sums, because one would wait for its own last addition at every step.
  let a = 0, b = 0, c = 0, d = 0;
  for (let i = 0; i < length; i += 4) {
    a += x[at + i]! * y[from + i]!;
    b += x[at + i + 1]! * y[from + i + 1]!;
    c += x[at + i + 2]! * y[from + i + 2]!;
    d += x[at + i + 3]! * y[from + i + 3]!;
  }
  return a + b + (c + d);
};

/** Begins the backward pass of one query shard. */
export const beginBackward = (queries: Queries, outcome: Outcome): BackwardPass => {
  const { batch, heads, kvHeads, headDim, scale, tokens } = queries;
  const { mask, score, slope } = queries.attention ?? {};
  const q = Float64Array.from(decode(queries.dtype, queries.bytes));
  const dO = Float64Array.from(outcome.cotangent);
  const lse = Float64Array.from(outcome.lse);
  const dq = new Float64Array(q.length);
  // D = Σ dO·o of each row is Σ P ∘ dP over all keys, since o is the whole sequence's.
  const d = Float64Array.from(
    { length: batch * tokens * heads },
    (_, row) => dot(dO, row * headDim, outcome.o, row * headDim, headDim),
  );

  const absorb = (block: KeyValues, tiles: ReadonlyArray<Tile>, band: Band): Float32Array => {
    const kv = Float64Array.from(decode(block.dtype, block.bytes));
    const [k, v] = [kv.subarray(0, kv.length / 2), kv.subarray(kv.length / 2)];
    const gradients = new Float64Array(kv.length);
    const [dk, dv] = [gradients.subarray(0, k.length), gradients.subarray(k.length)];
    for (const tile of tiles) {
      for (let i = 0; i < tile.queries.count; i++) {
        const position = positionAt(tile.queries, i);
        // Keys ascend, so that those which the band allows are neighbours.
        const lo = tile.full ? 0 : countUpTo(tile.keys, position - band.back - 1);
        const hi = tile.full ? tile.keys.count : countUpTo(tile.keys, position + band.ahead);
        for (let b = 0; b < batch; b++) {
          for (let h = 0; h < heads; h++) {
            const row = (b * tokens + tile.row + i) * heads + h;
            const from = row * headDim;
            const top = lse[(b * heads + h) * tokens + tile.row + i]!;
            const g = Math.floor(h * kvHeads / heads);
            for (let j = lo; j < hi; j++) {
              const pair = [b, h, position, positionAt(tile.keys, j)] as const;
              if (tile.pairwise === true && !mask!(...pair)) continue;
              const key = ((b * block.tokens + tile.column + j) * kvHeads + g) * headDim;
              const s = dot(q, from, k, key, headDim) * scale;
              const p = Math.exp((score?.(s, ...pair) ?? s) - top);
              const ds = p * (dot(dO, from, v, key, headDim) - d[row]!) *
                (slope?.(s, ...pair) ?? 1) * scale;
              for (let c = 0; c < headDim; c++) {
                dv[key + c]! += p * dO[from + c]!;
                dq[from + c]! += ds * k[key + c]!;
                dk[key + c]! += ds * q[from + c]!;
              }
            }
          }
        }
      }
    }
    return Float32Array.from(gradients);
  };

  return { absorb, finish: () => Float32Array.from(dq), close: () => {} };
};
