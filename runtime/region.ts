/**
 * Regions: where the elements of a shard lie in the whole tensor. A driver that moves one stretch of a shard's own
 * array learns from them which parts of the whole to read or write, however the layout scattered the tokens.
 *
 * @module
 */
import { positionAt, type Span } from "./span.ts";

/** A tensor seen as [outer, tokens, inner], row-major: `tokens` is the axis along which shards are cut. */
export interface TokenArray {
  readonly outer: number;
  readonly tokens: number;
  readonly inner: number;
}

/** `length` consecutive elements from element `offset` on. */
export interface Region {
  readonly offset: number;
  readonly length: number;
}

/** How many tokens from the span's `i`-th on follow each other without a gap, not counting the span's end. */
const untilGap = (span: Span, i: number): number =>
  span.stride === span.run ? span.count - i : span.run - (span.first + i) % span.run;

/** One region for each run that the elements `from` … `to − 1` touch; neighbours may be adjacent. */
function* runs(
  { tokens, inner }: TokenArray,
  spans: ReadonlyArray<Span>,
  row: number,
  from: number,
  to: number,
): Generator<Region> {
  for (let outer = Math.floor(from / row); outer * row < to; outer++) {
    let begin = outer * row;
    for (const span of spans) {
      const end = begin + span.count * inner;
      let at = Math.max(from, begin);
      while (at < Math.min(to, end)) {
        const token = Math.floor((at - begin) / inner);
        const within = (at - begin) % inner;
        const length = Math.min(to - at, end - at, untilGap(span, token) * inner - within);
        yield { offset: (outer * tokens + positionAt(span, token)) * inner + within, length };
        at += length;
      }
      begin = end;
    }
  }
}

/** Joins each region with the next where that one begins at its end. */
function* joined(regions: Iterable<Region>): Generator<Region> {
  let last: Region | undefined;
  for (const region of regions) {
    if (last === undefined) last = region;
    else if (last.offset + last.length === region.offset) {
      last = { offset: last.offset, length: last.length + region.length };
    } else {
      yield last;
      last = region;
    }
  }
  if (last !== undefined) yield last;
}

/**
 * The regions of the whole tensor that hold the elements `from` … `to − 1` of a shard, in the shard's order, in time
 * proportional to their number. The shard's own array is [outer, shard tokens, inner]; its tokens are those of
 * `spans`, one span after the other.
 *
 * @throws {RangeError} Where `from` and `to` are not in the shard's array, or a span is not in the tensor.
 */
export const regions = (
  whole: TokenArray,
  spans: ReadonlyArray<Span>,
  from: number,
  to: number,
): Generator<Region> => {
  for (const span of spans.filter((span) => span.count > 0)) {
    const [low, high] = [positionAt(span, 0), positionAt(span, span.count - 1)];
    if (low < 0 || high >= whole.tokens) {
      throw new RangeError(
        `Cannot map a shard as its tokens must be within 0 … ${whole.tokens - 1}: ` +
          `found ${low} … ${high}`,
      );
    }
  }
  const row = whole.inner * spans.reduce((tokens, span) => tokens + span.count, 0);
  const all = whole.outer * row;
  if (!(Number.isInteger(from) && Number.isInteger(to) && 0 <= from && from <= to && to <= all)) {
    throw new RangeError(
      `Cannot map a part of a shard as it must be within its ${all} elements: found ${from} … ${to}`,
    );
  }
  return joined(runs(whole, spans, row, from, to));
};
