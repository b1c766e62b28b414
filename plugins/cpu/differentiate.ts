/**
 * The backward pass of one thread: for a range of a block's keys of one K/V head, all that the query rows have for it.
 *
 * @module
 */
import { vectorsOf } from "./attend.ts";
import type { Blas } from "./blas.ts";
import type { Control } from "./control.ts";
import { chunksOf, type Differentiate, rangesOf } from "./job.ts";
import type { Asker } from "./pairs.ts";
import { chunk, partsOf, sightOf, writeMask } from "./sight.ts";
import { keysAtOnce, type Softmax } from "./softmax.ts";

/** Gives what computes one item of a job. */
export const differentiate = (
  blas: Blas,
  softmax: Softmax,
  control: Control,
  job: Differentiate,
  asker?: Asker,
): (item: number) => void => {
  const { batch, tokens, heads, kvHeads, headDim, scale } = job.shape;
  const { q, cotangent, lse, d, dq } = job.slopes;
  const { gradients, turns, added } = job;
  const [chunks, ranges] = [chunksOf(tokens), rangesOf(job.keys.tokens)];
  const group = heads / kvHeads;
  const [queryAt, cotangentAt, dqAt] = [q, cotangent, dq].map((tensor) =>
    vectorsOf(tensor, tokens, heads, headDim)
  );
  const half = gradients.length / 2;
  const [dkAt, dvAt] = [gradients.subarray(0, half), gradients.subarray(half)].map((tensor) =>
    vectorsOf(tensor, job.keys.tokens, kvHeads, headDim)
  );
  const [keyAt, valueAt] = [job.keys.k, job.keys.v].map((tensor) =>
    vectorsOf(tensor, job.keys.tokens, kvHeads, headDim)
  );
  const [wide, narrow] = [heads * headDim, kvHeads * headDim];
  const [p, ds] = [softmax.matrix(0), softmax.matrix(1)];
  const [turnedP, turnedDs] = [softmax.matrix(0, true), softmax.matrix(1, true)];

  /** What one chunk of rows of one head has for the range; `mine` waits for the turn at dq. */
  const addChunk = (b: number, h: number, index: number, range: number, mine: () => void): void => {
    const g = Math.floor(h / group);
    for (const rectangle of job.rectangles) {
      const sight = sightOf(rectangle, ...chunk(index, tokens));
      if (sight === undefined) continue;
      const { column } = rectangle;
      const begin = Math.max(sight.first, range * keysAtOnce - column);
      const stop = Math.min(sight.end, (range + 1) * keysAtOnce - column);
      for (const part of partsOf(sight, begin, stop)) {
        const { from, to, first, end, masked } = part;
        const [rows, count] = [to - from, end - first];
        const query = { at: queryAt!(b, from, h), stride: wide };
        const dO = { at: cotangentAt!(b, from, h), stride: wide };
        const key = { at: keyAt!(b, column + first, g), stride: narrow };
        const value = { at: valueAt!(b, column + first, g), stride: narrow };
        blas.product([rows, count, headDim], scale, query, { ...key, turned: true }, p, false);
        blas.product([rows, count, headDim], 1, dO, { ...value, turned: true }, ds, false);
        const at = (b * heads + h) * tokens;
        softmax.tops.values.set(lse.subarray(at + from, at + to));
        softmax.sums.values.set(d.subarray(at + from, at + to));
        if (masked) writeMask(softmax, rectangle, part);
        const pairs = { rectangle, part, b, h };
        const asks = asker?.scores === true || rectangle.pairwise === true;
        if (asks) asker!.ask(pairs, true);
        softmax.gradients({ skip: 0, rows, columns: count, masked });
        if (asks) asker!.correct(pairs);
        const dv = { at: dvAt!(b, column + first, g), stride: narrow };
        const dk = { at: dkAt!(b, column + first, g), stride: narrow };
        blas.product([count, headDim, rows], 1, turnedP, dO, dv, true);
        blas.product([count, headDim, rows], scale, turnedDs, query, dk, true);
        mine();
        const into = { at: dqAt!(b, from, h), stride: wide };
        blas.product([rows, headDim, count], scale, ds, key, into, true);
      }
    }
  };

  return (item) => {
    // Every range that this one may have to wait for has a smaller number, so that somebody is at it.
    const range = Math.floor(item / (batch * kvHeads));
    const [b, g] = [Math.floor(item / kvHeads) % batch, item % kvHeads];
    for (let h = g * group; h < (g + 1) * group; h++) {
      for (let index = 0; index < chunks; index++) {
        const turn = turns[index * ranges + range]!;
        if (turn < 0) continue;
        const word = (b * heads + h) * chunks + index;
        const mine = () => {
          if (control.wait(() => Atomics.load(added, word) >= turn)) return;
          throw new Error("another thread failed");
        };
        addChunk(b, h, index, range, mine);
        mine(); // also where no row of the chunk sees any of these keys
        Atomics.store(added, word, turn + 1);
        control.wake();
      }
    }
  };
};
