import fc from "fast-check";
import assert from "node:assert/strict";
import { contiguous, countUpTo, positionAt, slice, type Span } from "../../runtime/span.ts";
import { positionsOfSpan, spans } from "../support/spans.ts";

const positions = (span: Span): Array<number> =>
  Array.from({ length: span.count }, (_, i) => positionAt(span, i));

Deno.test("positionAt() walks the runs in order", () => {
  const span = { start: 10, run: 2, stride: 5, first: 1, count: 5 };
  assert.deepEqual(positions(span), [11, 15, 16, 20, 21]);
  fc.assert(fc.property(spans, (span) => assert.deepEqual(positions(span), positionsOfSpan(span))));
});

Deno.test("countUpTo() counts the positions up to and including its argument", () => {
  const property = fc.property(spans, fc.integer({ min: -5, max: 400 }), (span, p) => {
    assert.equal(countUpTo(span, p), positionsOfSpan(span).filter((x) => x <= p).length);
  });
  fc.assert(property, { numRuns: 1000 });
});

Deno.test("countUpTo() and positionAt() are inverse near 2³⁰", () => {
  const span = { start: 2 ** 30 - 1000, run: 3, stride: 7, first: 2, count: 100 };
  positions(span).forEach((p, i) => {
    assert.equal(countUpTo(span, p), i + 1);
    assert.equal(countUpTo(span, p - 1), i);
  });
  assert.equal(countUpTo(span, 2 ** 31), 100);
  assert.equal(countUpTo(span, -(2 ** 30)), 0);
});

Deno.test("contiguous() is one stretch, which may be empty", () => {
  assert.deepEqual(positions(contiguous(7, 3)), [7, 8, 9]);
  assert.deepEqual(positions(contiguous(7, 0)), []);
  assert.equal(countUpTo(contiguous(7, 0), 100), 0);
});

Deno.test("slice() keeps the positions of the tokens it keeps", () => {
  fc.assert(fc.property(spans, fc.nat(60), fc.nat(60), (span, a, b) => {
    const [from, to] = [Math.min(a, b, span.count), Math.min(Math.max(a, b), span.count)];
    const all = positionsOfSpan(span);
    assert.deepEqual(positions(slice(span, from, to - from)), all.slice(from, to));
  }));
});
