import { Result } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { causal, documents, prefix, window } from "../../plugins/attention.ts";
import { cheapest, type LayoutCost, layoutCosts } from "../../runtime/layout_choice.ts";
import type { Layout } from "../../runtime/layout.ts";
import { planOf } from "../../runtime/plan.ts";
import type { Variant } from "../../runtime/variant.ts";
import { uniform } from "../support/random.ts";
import { positionsOfSpan } from "../support/spans.ts";

const problem = (tokens: number, attention: ReadonlyArray<Variant>) => ({
  ...{ batch: 1, tokens, heads: 8, kvHeads: 2, headDim: 64, scale: 1 },
  attention,
});

const costs = (tokens: number, attention: ReadonlyArray<Variant>, ring = 8) =>
  Result.getOrThrow(
    layoutCosts({ problem: problem(tokens, attention), weights: Array(ring).fill(1), wire: "f32" }),
  );

const of = (all: ReadonlyArray<LayoutCost>, layout: Layout): LayoutCost =>
  all.find((cost) => cost.layout === layout)!;

/** Documents of lengths from a heavy-tailed distribution (Pareto, α = 1.1), from 64 tokens on. */
const heavyTailed = (tokens: number, seed: number): ReadonlyArray<number> => {
  const random = uniform(seed);
  const bounds = [0];
  while (bounds.at(-1)! < tokens) {
    bounds.push(Math.min(tokens, bounds.at(-1)! + Math.ceil(64 * random() ** (-1 / 1.1))));
  }
  return bounds;
};

Deno.test("the layout that is chosen balances documents of very unlike lengths, and zigzag does not", () => {
  for (const seed of [1, 2, 3]) {
    const packed = documents({ cu_seqlens: heavyTailed(32_768, seed) });
    for (const attention of [[packed], [packed, causal()]]) {
      const all = costs(32_768, attention);
      const chosen = of(all, cheapest(all));
      const [found, zigzag] = [chosen.balance, of(all, "zigzag").balance];
      console.log(`balance ${found.toFixed(3)} (${chosen.layout}), zigzag ${zigzag.toFixed(3)}`);
      assert.ok(found <= 1.1 && zigzag > 1.1, `${found} and ${zigzag}`);
    }
  }
});

Deno.test("a window keeps to contiguous shards, which move its halo alone", () => {
  const all = costs(32_768, [window({ size: 4096 })]);
  assert.equal(cheapest(all), "contiguous");
  assert.equal(of(all, "contiguous").sentBytes, 7 * 4095 * 2 * 2 * 64 * 4);
  assert.equal(of(all, "contiguous").hops, 1);
});

Deno.test("a layout that moves less is taken where it costs about as much", () => {
  const cost = (layout: Layout, cost: number, sentBytes: number): LayoutCost => ({
    ...{ layout, cost, sentBytes, balance: 1, hops: 1 },
  });
  const all = [cost("contiguous", 109, 1), cost("zigzag", 107, 2), cost("striped", 100, 3)];
  assert.equal(cheapest(all), "zigzag");
});

Deno.test("a solved layout gives every token to one rank, within its share of memory, and balances", () => {
  const property = fc.property(
    fc.integer({ min: 1, max: 700 }),
    fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 6 })
      .filter((weights) => weights.some((weight) => weight > 0)),
    fc.nat(),
    (tokens, weights, seed) => {
      const bounds = heavyTailed(tokens, seed);
      for (
        const attention of [[documents({ cu_seqlens: bounds })], [causal()], [
          prefix({ length: 40 }),
        ], []]
      ) {
        const plan = Result.getOrThrow(
          planOf({ problem: problem(tokens, attention), layout: "solved", weights, wire: "f32" }),
        );
        const held = plan.ranks.flatMap(({ shard }) => shard.flatMap(positionsOfSpan));
        assert.deepEqual(held.sort((a, b) => a - b), Array.from({ length: tokens }, (_, i) => i));
        const all = weights.reduce((a, b) => a + b, 0);
        const stretch = Math.ceil(tokens / (16 * weights.filter((weight) => weight > 0).length));
        plan.ranks.forEach(({ tokens: mine }, rank) => {
          assert.ok(mine <= Math.max(2 * tokens * weights[rank]! / all, stretch) + stretch);
        });
      }
    },
  );
  fc.assert(property, { numRuns: 40 });
});
