import fc from "fast-check";
import assert from "node:assert/strict";
import { allows, type Band, pairsBetween } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";
import { positionsOfSpan, spans } from "../support/spans.ts";
import { bandOf, causal, full, resolved, window } from "../support/masks.ts";

const masks = fc.oneof(
  fc.constantFrom(full, causal),
  fc.integer({ min: 1, max: 60 }).map(window),
);

Deno.test("a band allows what its mask says", () => {
  const position = fc.nat(100);
  fc.assert(fc.property(masks, position, position, (mask, q, k) => {
    assert.equal(allows(bandOf(mask), q, k), resolved(mask).sees(0, 0, q, k));
  }));
});

Deno.test("no band that is unbounded ends before 2³⁰", () => {
  const last = 2 ** 30 - 1;
  assert.ok(allows(bandOf(full), 0, last) && allows(bandOf(full), last, 0));
  assert.ok(allows(bandOf(causal), last, 0));
});

Deno.test("a window of 1 is the query itself", () => {
  const band = bandOf(window(1));
  assert.deepEqual([4, 5, 6].map((k) => allows(band, 5, k)), [false, true, false]);
});

Deno.test("pairsBetween() counts the pairs that the band allows", () => {
  const bands: fc.Arbitrary<Band> = fc.oneof(
    masks.map(bandOf),
    fc.tuple(fc.integer({ min: -5, max: 60 }), fc.nat(60))
      .map(([back, width]) => ({ back, ahead: width - back })),
  );
  const property = fc.property(bands, spans, spans, (band, queries, keys) => {
    let pairs = 0;
    for (const q of positionsOfSpan(queries)) {
      for (const k of positionsOfSpan(keys)) if (allows(band, q, k)) pairs++;
    }
    assert.equal(pairsBetween(band, queries, keys), pairs);
  });
  fc.assert(property, { numRuns: 5000 });
});

Deno.test("pairsBetween() is exact where positions are near 2³⁰", () => {
  const tokens = contiguous(2 ** 30 - 1000, 1000);
  assert.equal(pairsBetween(bandOf(causal), tokens, tokens), 500_500);
  assert.equal(pairsBetween(bandOf(full), tokens, tokens), 1_000_000);
  assert.equal(pairsBetween(bandOf(window(10)), tokens, tokens), 9_955);
});
