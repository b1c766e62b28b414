import assert from "node:assert/strict";
import fc from "fast-check";
import { layouts, shardsOf } from "../../runtime/layout.ts";
import { type Region, regions, type TokenArray } from "../../runtime/region.ts";
import { contiguous, positionAt, slice, type Span } from "../../runtime/span.ts";

/** The element of the whole tensor under every element of the shard's array, one by one. */
const bruteForce = ({ outer, tokens, inner }: TokenArray, spans: ReadonlyArray<Span>) => {
  const positions = spans.flatMap((span) =>
    Array.from({ length: span.count }, (_, i) => positionAt(span, i))
  );
  const elements: Array<number> = [];
  for (let o = 0; o < outer; o++) {
    for (const position of positions) {
      for (let i = 0; i < inner; i++) elements.push((o * tokens + position) * inner + i);
    }
  }
  return elements;
};

const elementsOf = (found: Iterable<Region>) =>
  Array.from(found).flatMap(({ offset, length }) => Array.from({ length }, (_, i) => offset + i));

/** Spans of all kinds: any run, stride and first index, empty ones, in any order, also overlapping. */
const anySpan = fc.record({
  start: fc.nat(5),
  run: fc.integer({ min: 1, max: 4 }),
  gap: fc.nat(5),
  first: fc.nat(6),
  count: fc.nat(9),
}).map(({ gap, ...span }): Span => ({ ...span, stride: span.run + gap }));

const lastOf = (span: Span) => span.count === 0 ? -1 : positionAt(span, span.count - 1);

const anyShard = fc.oneof(
  fc.array(anySpan, { maxLength: 4 }).map((spans) => ({
    spans,
    tokens: Math.max(0, ...spans.map(lastOf)) + 1,
  })),
  fc.record({
    layout: fc.constantFrom(...layouts),
    tokens: fc.integer({ min: 1, max: 40 }),
    weights: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 5 }),
    rank: fc.nat(),
  }).map(({ layout, tokens, weights, rank }) => ({
    spans: shardsOf(layout, tokens, weights)[rank % weights.length]!,
    tokens,
  })),
);

const anyPart = fc.record({
  shard: anyShard,
  spare: fc.nat(3),
  outer: fc.integer({ min: 1, max: 3 }),
  inner: fc.integer({ min: 1, max: 5 }),
  cut: fc.tuple(fc.nat(), fc.nat()),
}).map(({ shard: { spans, tokens }, spare, outer, inner, cut }) => {
  const whole: TokenArray = { outer, tokens: tokens + spare, inner };
  const expected = bruteForce(whole, spans);
  const [from, to] = cut.map((n) => n % (expected.length + 1)).sort((a, b) => a - b);
  return { whole, spans, expected, from: from!, to: to! };
});

Deno.test("regions are those of brute force, for any spans and any part of the shard", () => {
  fc.assert(
    fc.property(anyPart, ({ whole, spans, expected, from, to }) => {
      assert.deepEqual(elementsOf(regions(whole, spans, from, to)), expected.slice(from, to));
    }),
    { numRuns: 2000 },
  );
});

Deno.test("no region is empty, and none begins where the one before it ends", () => {
  fc.assert(
    fc.property(anyPart, ({ whole, spans, from, to }) => {
      const found = [...regions(whole, spans, from, to)];
      found.forEach((region, i) => {
        const before = found[i - 1];
        assert.ok(region.length > 0);
        assert.ok(before === undefined || before.offset + before.length !== region.offset);
      });
    }),
    { numRuns: 1000 },
  );
});

Deno.test("the shards of a layout cover every element of the tensor once", () => {
  for (const layout of layouts) {
    const whole: TokenArray = { outer: 2, tokens: 23, inner: 3 };
    const all = shardsOf(layout, whole.tokens, [2, 1, 1, 3]).flatMap((spans) => {
      const tokens = spans.reduce((sum, span) => sum + span.count, 0);
      return elementsOf(regions(whole, spans, 0, whole.outer * tokens * whole.inner));
    });
    assert.deepEqual(all.sort((a, b) => a - b), Array.from({ length: 2 * 23 * 3 }, (_, i) => i));
  }
});

Deno.test("a stretch of 2^40 elements is one region, found without walking its tokens", () => {
  const whole: TokenArray = { outer: 1, tokens: 2 ** 30, inner: 1024 };
  // Run and stride 1: consecutive tokens in the shape of a striped shard of a ring of one.
  const stripe: Span = { start: 0, run: 1, stride: 1, first: 0, count: whole.tokens };
  for (const span of [contiguous(0, whole.tokens), stripe, slice(stripe, 5, 2 ** 29)]) {
    let asked = 0;
    const counted = new Proxy(span, {
      get: (target, key, receiver) => (asked++, Reflect.get(target, key, receiver)),
    });
    const to = span.count * 1024 - 3;
    assert.deepEqual([...regions(whole, [counted], 7, to)], [
      { offset: span.first * 1024 + 7, length: to - 7 },
    ]);
    assert.ok(asked < 100, `the span was asked ${asked} times`);
  }
});

Deno.test("regions come one at a time, and the first ones do not cost the rest", () => {
  const whole: TokenArray = { outer: 64, tokens: 2 ** 30, inner: 1 };
  const stripe: Span = { start: 3, run: 1, stride: 8, first: 0, count: 2 ** 27 };
  const found = regions(whole, [stripe], 5 * 2 ** 27 + 2 ** 26, 64 * 2 ** 27);
  assert.deepEqual(found.next().value, { offset: 5 * 2 ** 30 + 8 * 2 ** 26 + 3, length: 1 });
  assert.deepEqual(found.next().value, { offset: 5 * 2 ** 30 + 8 * (2 ** 26 + 1) + 3, length: 1 });
});

Deno.test("a part outside the shard, or a span outside the tensor, throws before any region", () => {
  const whole: TokenArray = { outer: 2, tokens: 10, inner: 4 };
  const spans = [contiguous(2, 3)];
  assert.equal([...regions(whole, spans, 24, 24)].length, 0);
  for (const [from, to] of [[0, 25], [-1, 4], [3, 2], [0.5, 2], [0, NaN]] as const) {
    assert.throws(() => regions(whole, spans, from, to), /must be within its 24 elements: found/);
  }
  for (const span of [contiguous(8, 3), contiguous(-1, 2)]) {
    assert.throws(() => regions(whole, [span], 0, 1), /must be within 0 … 9: found/);
  }
});

Deno.test("a shard without tokens has no regions", () => {
  const whole: TokenArray = { outer: 2, tokens: 10, inner: 4 };
  assert.deepEqual([...regions(whole, [], 0, 0)], []);
  assert.deepEqual([...regions(whole, [contiguous(10, 0)], 0, 0)], []);
});
