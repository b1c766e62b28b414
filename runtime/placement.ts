/**
 * Who holds which tokens of a sequence that grows: what is read at once is dealt out in zigzag, which balances causal
 * attention, and what is written token by token in turn, so that no rank fills up before the others.
 *
 * @module
 */
import { shardsOf } from "./layout.ts";
import { countUpTo, positionAt, slice, type Span } from "./span.ts";

/** The spans of every rank. */
export type Placement = ReadonlyArray<ReadonlyArray<Span>>;

/** Where `tokens` tokens go that come after `past` others. */
export const placementOf = (past: number, tokens: number, ring: number): Placement => {
  if (tokens >= 2 * ring) {
    const weights = Array.from({ length: ring }, () => 1);
    return shardsOf("zigzag", tokens, weights)
      .map((spans) => spans.map((span) => ({ ...span, start: span.start + past })));
  }
  return Array.from(
    { length: ring },
    (_, rank) =>
      Array.from({ length: tokens }, (_, i) => past + i)
        .filter((position) => position % ring === rank)
        .map((start) => ({ start, run: 1, stride: ring, first: 0, count: 1 })),
  );
};

/** Of the spans, the tokens from a position on. */
export const from = (spans: ReadonlyArray<Span>, position: number): ReadonlyArray<Span> =>
  spans.flatMap((span) => {
    const before = countUpTo(span, position - 1);
    return before === span.count ? [] : [slice(span, before, span.count - before)];
  });

/** Of the spans, the tokens before a position. */
export const before = (spans: ReadonlyArray<Span>, position: number): ReadonlyArray<Span> =>
  spans.flatMap((span) => {
    const count = countUpTo(span, position - 1);
    return count === 0 ? [] : [slice(span, 0, count)];
  });

/** How many tokens there are. */
export const tokensIn = (spans: ReadonlyArray<Span>): number =>
  spans.reduce((sum, { count }) => sum + count, 0);

/** Whether these are all tokens up to that one, each of them once, and those of each rank in ascending order. */
export const coversAll = (placement: Placement, tokens: number): boolean => {
  if (placement.reduce((sum, spans) => sum + tokensIn(spans), 0) !== tokens) return false;
  const seen = new Uint8Array(tokens);
  return placement.every((spans) => {
    let last = -1;
    return positionsOf(spans).every((position) => {
      if (!(position > last && position < tokens) || seen[position] === 1) return false;
      seen[position] = 1;
      last = position;
      return true;
    });
  });
};

/** The positions of all tokens, in the order of their rows. */
export const positionsOf = (spans: ReadonlyArray<Span>): ReadonlyArray<number> =>
  spans.flatMap((span) => Array.from({ length: span.count }, (_, i) => positionAt(span, i)));

/** Whether single tokens go on where a span of single tokens ends. */
export const follows = (span: Span, next: Span): boolean =>
  span.run === 1 && next.run === 1 && span.stride === next.stride &&
  positionAt(span, span.count - 1) + span.stride === positionAt(next, 0);

/** Spans with others behind them. */
export const joined = (
  spans: ReadonlyArray<Span>,
  more: ReadonlyArray<Span>,
): ReadonlyArray<Span> => {
  const all = [...spans];
  for (const span of more) {
    const tail = all.at(-1);
    if (tail === undefined || !follows(tail, span)) all.push(span);
    else all[all.length - 1] = { ...tail, count: tail.count + span.count };
  }
  return all;
};
