/**
 * Spans for tests, and their positions counted one by one.
 *
 * @module
 */
import fc from "fast-check";
import type { Span } from "../../runtime/span.ts";

/** The positions of a span in order. */
export const positionsOfSpan = (
  { start, run, stride, first, count }: Span,
): ReadonlyArray<number> => {
  const sequence: Array<number> = [];
  for (let begin = start; sequence.length < first + count; begin += stride) {
    for (let i = 0; i < run; i++) sequence.push(begin + i);
  }
  return sequence.slice(first, first + count);
};

/** Small spans of every kind. */
export const spans: fc.Arbitrary<Span> = fc.record({
  start: fc.nat(40),
  run: fc.integer({ min: 1, max: 6 }),
  gap: fc.nat(9),
  first: fc.nat(12),
  count: fc.nat(50),
}).map(({ gap, ...rest }) => ({ ...rest, stride: rest.run + gap }));
