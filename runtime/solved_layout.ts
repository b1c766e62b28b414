/**
 * The solved layout: a sequence is cut into many stretches, each of which goes to the rank that has the least to do so
 * far, those with the most pairs first. For equal ranks the busiest one then has at most 4/3 of the least that is
 * possible (Graham 1969); with sixteen stretches a rank it is within a few per cent, whatever the mask.
 *
 * Good for masks that no fixed layout balances, as packed documents of very unlike lengths. It scatters what belongs
 * together, so that more K and V travel than with contiguous shards.
 *
 * @module
 */
import type { Attention } from "./attention.ts";
import { contiguous, type Span } from "./span.ts";
import { Asking, tilesOf } from "./tiles.ts";

/** Stretches for each rank, about. */
const stretchesPerRank = 16;
/** No rank takes more than this many times its share of the tokens, which are its memory. */
const mostTokens = 2;

/** The spans of every rank's shard, as `shardsOf` gives them. */
export const solvedShards = (
  attention: Attention,
  tokens: number,
  weights: ReadonlyArray<number>,
): ReadonlyArray<ReadonlyArray<Span>> => {
  const all = weights.reduce((a, b) => a + b, 0);
  const count = Math.min(tokens, stretchesPerRank * weights.filter((weight) => weight > 0).length);
  const size = Math.ceil(tokens / count);
  const keys = contiguous(0, tokens);
  const asking = new Asking();
  const stretches = Array.from({ length: Math.ceil(tokens / size) }, (_, i) => {
    const span = contiguous(i * size, Math.min(size, tokens - i * size));
    return { span, pairs: tilesOf(attention, asking, [span], keys).pairs };
  });
  const ranks = weights.map((weight, rank) => ({
    rank,
    weight,
    pairs: 0,
    tokens: 0,
    // One stretch in any case, or nobody might take the last one.
    most: Math.max(mostTokens * tokens * weight / all, size),
    spans: [] as Array<Span>,
  })).filter(({ weight }) => weight > 0);
  for (const { span, pairs } of stretches.toSorted((a, b) => b.pairs - a.pairs)) {
    const able = ranks.filter(({ tokens, most }) => tokens + span.count <= most);
    // Where pairs are alike, tokens decide.
    const best = (able.length > 0 ? able : ranks).reduce((a, b) => {
      const [x, y] = [a, b].map((rank) => (rank.pairs + pairs) / rank.weight);
      if (x !== y) return x! < y! ? a : b;
      return b.tokens / b.weight < a.tokens / a.weight ? b : a;
    });
    best.pairs += pairs;
    best.tokens += span.count;
    best.spans.push(span);
  }
  const shards: Array<ReadonlyArray<Span>> = weights.map(() => []);
  for (const { rank, spans } of ranks) shards[rank] = joined(spans);
  return shards;
};

/** Stretches in ascending order, neighbours as one. */
const joined = (spans: ReadonlyArray<Span>): ReadonlyArray<Span> => {
  const whole: Array<Span> = [];
  for (const span of spans.toSorted((a, b) => a.start - b.start)) {
    const last = whole.at(-1);
    if (last !== undefined && last.start + last.count === span.start) {
      whole[whole.length - 1] = contiguous(last.start, last.count + span.count);
    } else whole.push(span);
  }
  return whole;
};
