/**
 * Layouts: the rule by which the tokens of a sequence become shards, for any length, ring size and node weights.
 *
 * | layout | rank r of N holds | good for |
 * | --- | --- | --- |
 * | contiguous | one stretch | full and windowed masks |
 * | striped | every N-th token from r | causal masks; every step is half masked |
 * | zigzag | one stretch from the front and its mirror image from the back | causal masks; no masked step after the first |
 * | solved | stretches by what they have to do, see `solved_layout.ts` | packed documents and other uneven masks |
 *
 * Source: Liu et al. 2023 (contiguous), Brandon et al. 2023 (striped), the zigzag of ring-flash-attention.
 *
 * @module
 */
import { contiguous, type Span } from "./span.ts";

/** The rules that do not depend on the mask, from the simplest on. */
export const layouts = ["contiguous", "zigzag", "striped"] as const;
/** A rule that does not depend on the mask. */
export type FixedLayout = typeof layouts[number];

/** The rule that makes shards. See `solved_layout.ts` for the one that looks at the mask. */
export type Layout = FixedLayout | "solved";

/** Whole numbers proportional to `weights` that add up to `total`, by largest remainder, ties to the lower index. */
export const apportion = (total: number, weights: ReadonlyArray<number>): ReadonlyArray<number> => {
  const sum = weights.reduce((a, b) => a + b, 0);
  const exact = weights.map((weight) => total * weight / sum);
  const shares = exact.map(Math.floor);
  const rest = total - shares.reduce((a, b) => a + b, 0);
  exact
    .map((share, index) => ({ index, remainder: share - Math.floor(share) }))
    .sort((a, b) => b.remainder - a.remainder || a.index - b.index)
    .slice(0, rest)
    .forEach(({ index }) => shares[index]!++);
  return shares;
};

/** The starts of consecutive stretches of these lengths. */
const offsets = (lengths: ReadonlyArray<number>): ReadonlyArray<number> => {
  let sum = 0;
  return lengths.map((length) => (sum += length) - length);
};

const contiguousShards = (tokens: number, weights: ReadonlyArray<number>) => {
  const sizes = apportion(tokens, weights);
  return offsets(sizes).map((start, rank) => [contiguous(start, sizes[rank]!)]);
};

/**
 * A rank's shard is a stretch of the first half and the mirrored stretch of the second, so that its causal pairs are
 * proportional to its size: with s tokens in each, s·S + s of them, wherever in the ring it stands.
 */
const zigzagShards = (tokens: number, weights: ReadonlyArray<number>) => {
  const sizes = apportion(tokens, weights);
  const front = sizes.map((size) => Math.ceil(size / 2));
  const back = sizes.map((size) => Math.floor(size / 2));
  const fromStart = offsets(front);
  const fromEnd = offsets(back);
  return sizes.map((_, rank) => [
    contiguous(fromStart[rank]!, front[rank]!),
    contiguous(tokens - fromEnd[rank]! - back[rank]!, back[rank]!),
  ]);
};

const divisor = (a: number, b: number): number => b === 0 ? a : divisor(b, a % b);

/** Tokens per rank in one period of a striped sequence: 1 each for equal ranks. */
const stripes = (weights: ReadonlyArray<number>): ReadonlyArray<number> => {
  const whole = weights.every(Number.isInteger) && weights.every((weight) => weight <= 64)
    ? weights
    : apportion(32 * weights.length, weights);
  const common = whole.reduce(divisor);
  return whole.map((weight) => weight / common);
};

const stripedShards = (tokens: number, weights: ReadonlyArray<number>) => {
  const runs = stripes(weights);
  const starts = offsets(runs);
  const stride = runs.reduce((a, b) => a + b, 0);
  return runs.map((run, rank) => {
    const start = starts[rank]!;
    const tail = Math.min(Math.max(tokens % stride - start, 0), run);
    const count = Math.floor(tokens / stride) * run + tail;
    return [{ start, run: Math.max(run, 1), stride, first: 0, count }];
  });
};

/**
 * The spans of every rank's shard. Each token is in exactly one; a rank may hold none.
 *
 * @param tokens Length of the sequence, at least 1.
 * @param weights One non-negative number a rank, not all 0: the share of the tokens that it takes.
 */
export const shardsOf = (
  layout: FixedLayout,
  tokens: number,
  weights: ReadonlyArray<number>,
): ReadonlyArray<ReadonlyArray<Span>> => {
  const shards = { contiguous: contiguousShards, striped: stripedShards, zigzag: zigzagShards };
  return shards[layout](tokens, weights).map((spans) => spans.filter((span) => span.count > 0));
};
