import assert from "node:assert/strict";
import fc from "fast-check";
import { apportion, layouts, shardsOf } from "../../runtime/layout.ts";
import { positionAt, type Span } from "../../runtime/span.ts";

const positions = (shard: ReadonlyArray<Span>): ReadonlyArray<number> =>
  shard.flatMap((span) => Array.from({ length: span.count }, (_, i) => positionAt(span, i)));

const weights = fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 1, maxLength: 9 })
  .filter((list) => list.some((weight) => weight > 0));

Deno.test("apportion() shares out everything, each within one of its exact share", () => {
  fc.assert(fc.property(fc.nat(10_000), weights, (total, shares) => {
    const sum = shares.reduce((a, b) => a + b, 0);
    const given = apportion(total, shares);
    assert.equal(given.reduce((a, b) => a + b, 0), total);
    given.forEach((share, i) => assert.ok(Math.abs(share - total * shares[i]! / sum) < 1));
  }));
});

for (const layout of layouts) {
  Deno.test(`shardsOf() ${layout}: every token is in exactly one shard, whatever the weights`, () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 400 }), weights, (tokens, shares) => {
      const shards = shardsOf(layout, tokens, shares);
      assert.equal(shards.length, shares.length);
      const all = shards.flatMap(positions).sort((a, b) => a - b);
      assert.deepEqual(all, Array.from({ length: tokens }, (_, i) => i));
    }));
  });

  Deno.test(`shardsOf() ${layout}: fractional weights give shards of their proportion`, () => {
    const shards = shardsOf(layout, 12_000, [0.5, 1.25, 2.25]).map((shard) =>
      positions(shard).length
    );
    [1500, 3750, 6750].forEach((size, rank) =>
      assert.ok(Math.abs(shards[rank]! - size) <= 12_000 / 96 + 1, `${shards}`)
    );
  });
}

Deno.test("shardsOf() literal examples", () => {
  const example = (layout: typeof layouts[number], shares: ReadonlyArray<number>) =>
    shardsOf(layout, 8, shares).map(positions);
  assert.deepEqual(example("contiguous", [1, 1]), [[0, 1, 2, 3], [4, 5, 6, 7]]);
  assert.deepEqual(example("striped", [1, 1]), [[0, 2, 4, 6], [1, 3, 5, 7]]);
  assert.deepEqual(example("striped", [2, 2]), [[0, 2, 4, 6], [1, 3, 5, 7]]);
  assert.deepEqual(example("striped", [3, 1]), [[0, 1, 2, 4, 5, 6], [3, 7]]);
  assert.deepEqual(example("zigzag", [1, 1]), [[0, 1, 6, 7], [2, 3, 4, 5]]);
  assert.deepEqual(example("zigzag", [3, 1]), [[0, 1, 2, 5, 6, 7], [3, 4]]);
});
