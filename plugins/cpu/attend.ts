/**
 * The forward pass of one thread: for a chunk of rows of one head, all that a block has for it.
 *
 * @module
 */
import type { Blas, Numbers } from "./blas.ts";
import { type Attend, chunksOf } from "./job.ts";
import type { Asker } from "./pairs.ts";
import { chunk, partsOf, sightOf, writeMask } from "./sight.ts";
import { rowsAtOnce, type Softmax } from "./softmax.ts";

/**
 * Scores up to this size need no maximum: e^20 and its inverse leave float32 the room for the sums of any sequence, and
 * for values between 1e-29 and 1e+23 all its digits. Most scores are that small, and the product of the longest query and
 * the longest key proves it.
 */
const smallScore = 20;

/** The longest key of those from `first` to before `end`, squared. */
const longestKey = (
  { longestKeys, shape, keys }: Attend,
  b: number,
  g: number,
  first: number,
  end: number,
): number => {
  const chunks = chunksOf(keys.tokens);
  let longest = 0;
  for (let c = Math.floor(first / rowsAtOnce); c * rowsAtOnce < end; c++) {
    const length = longestKeys[(b * chunks + c) * shape.kvHeads + g]!;
    if (!(length <= longest)) longest = length;
  }
  return longest;
};

/** What lies from a head's vector on in a [batch, tokens, heads, headDim] tensor. */
export type From<N extends Numbers> = (b: number, token: number, head: number) => N;

/** The same for any vector of a tensor. */
export const vectorsOf = <N extends Numbers>(
  tensor: N,
  tokens: number,
  heads: number,
  headDim: number,
): From<N> => {
  const width = headDim * 4 / tensor.BYTES_PER_ELEMENT;
  return (b, token, head) => tensor.subarray(((b * tokens + token) * heads + head) * width) as N;
};

/** Gives what computes one item of a job. */
export const attend = (
  blas: Blas,
  softmax: Softmax,
  job: Attend,
  asker?: Asker,
): (item: number) => void => {
  const { tokens, heads, kvHeads, headDim, scale } = job.shape;
  const { q, longestQueries, outputs, tops, sums } = job.state;
  const chunks = chunksOf(tokens);
  const queryAt = vectorsOf(q, tokens, heads, headDim);
  const outputAt = vectorsOf(outputs, tokens, heads, headDim);
  const keyAt = vectorsOf(job.keys.k, job.keys.tokens, kvHeads, headDim);
  const valueAt = vectorsOf(job.keys.v, job.keys.tokens, kvHeads, headDim);
  const [wide, narrow] = [heads * headDim, kvHeads * headDim];

  return (item) => {
    // One head after the other, whose keys stay in a cache, and the last rows first: under a causal mask they have the
    // most to do, and the least is left for the end.
    const head = Math.floor(item / chunks);
    const [b, h] = [Math.floor(head / heads), head % heads];
    const index = chunks - 1 - item % chunks;
    const g = Math.floor(h * kvHeads / heads);
    const longest = longestQueries[(b * chunks + index) * heads + h]!;
    for (const rectangle of job.rectangles) {
      const sight = sightOf(rectangle, ...chunk(index, tokens));
      if (sight === undefined) continue;
      const rows = (at: number) => (b * heads + h) * tokens + at;
      softmax.sums.values.set(sums.subarray(rows(sight.from), rows(sight.to)));
      softmax.tops.values.set(tops.subarray(rows(sight.from), rows(sight.to)));
      const count = sight.to - sight.from;
      // A row whose scores were all small has its top at 0.
      let small = softmax.tops.values.subarray(0, count).every((top) => top === 0);
      for (const part of partsOf(sight)) {
        const { from, to, first, end, masked } = part;
        const [key, keyEnd] = [rectangle.column + first, rectangle.column + end];
        const output = outputAt(b, from, h);
        blas.product(
          [to - from, end - first, headDim],
          scale,
          { at: queryAt(b, from, h), stride: wide },
          { at: keyAt(b, key, g), stride: narrow, turned: true },
          softmax.matrix(0),
          false,
        );
        if (masked) writeMask(softmax, rectangle, part);
        const pairs = { rectangle, part, b, h };
        const pairwise = rectangle.pairwise === true;
        if (asker?.scores === true || pairwise) asker!.ask(pairs);
        const square = longest * longestKey(job, b, g, key, keyEnd);
        small &&= Math.sqrt(square) * Math.abs(scale) <= smallScore && !pairwise &&
          asker?.scores !== true;
        const tile = { skip: from - sight.from, rows: to - from, columns: end - first, masked };
        if (small) softmax.weigh(tile);
        else if (pairwise ? asker!.weigh(pairs, tile.skip) : softmax.weighWithTops(tile)) {
          softmax.keeps.values.subarray(0, tile.rows).forEach((keep, i) => {
            if (keep !== 1) blas.multiply(output.subarray(i * wide, i * wide + headDim), keep);
          });
        }
        blas.product(
          [to - from, headDim, end - first],
          1,
          softmax.matrix(0),
          { at: valueAt(b, key, g), stride: narrow },
          { at: output, stride: wide },
          true,
        );
      }
      sums.set(softmax.sums.values.subarray(0, count), rows(sight.from));
      tops.set(softmax.tops.values.subarray(0, count), rows(sight.from));
    }
  };
};
