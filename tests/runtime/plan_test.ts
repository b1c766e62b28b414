import assert from "node:assert/strict";
import { Result } from "effect";
import fc from "fast-check";
import { type Layout, layouts } from "../../runtime/layout.ts";
import { allows, bandOf, type Mask } from "../../runtime/mask.ts";
import {
  balanceOf,
  type Plan,
  planOf,
  type PlanSpec,
  type Problem,
  refusalFor,
} from "../../runtime/plan.ts";
import { positionAt, type Span } from "../../runtime/span.ts";

const problem = (tokens: number, mask: Mask, more: Partial<Problem> = {}): Problem => ({
  batch: 1,
  tokens,
  heads: 2,
  kvHeads: 1,
  headDim: 8,
  scale: 1,
  mask,
  ...more,
});
const spec = (
  tokens: number,
  mask: Mask,
  layout: Layout,
  ring: number | ReadonlyArray<number>,
): PlanSpec => ({
  problem: problem(tokens, mask),
  layout,
  weights: typeof ring === "number" ? Array(ring).fill(1) : ring,
  wire: "f32",
});
const planned = (...args: Parameters<typeof spec>): Plan =>
  Result.getOrThrow(planOf(spec(...args)));
const causal: Mask = { kind: "causal" };
const full: Mask = { kind: "full" };
const sum = (values: ReadonlyArray<number>) => values.reduce((a, b) => a + b, 0);
const at = (span: Span) => Array.from({ length: span.count }, (_, i) => positionAt(span, i));
/** Pairs of a rank, by the distance of the block's home. */
const byDistance = (plan: Plan, rank: number) =>
  Array.from(
    { length: plan.ring },
    (_, distance) =>
      sum(plan.ranks[rank]!.steps.filter((step) => step.distance === distance).map((s) => s.pairs)),
  );

const anyMask = fc.oneof(
  fc.constant(full),
  fc.constant(causal),
  fc.record({ kind: fc.constant("window" as const), window: fc.integer({ min: 1, max: 150 }) }),
);
const anyRing = fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 6 })
  .filter((weights) => weights.some((weight) => weight > 0));

Deno.test("planOf() every allowed pair is in exactly one tile of exactly one step", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 120 }),
      anyMask,
      fc.constantFrom(...layouts),
      anyRing,
      (tokens, mask, layout, ring) => {
        const plan = planned(tokens, mask, layout, ring);
        const band = bandOf(mask);
        const times = new Map<number, number>();
        for (const { steps } of plan.ranks) {
          for (const { tiles, pairs } of steps) {
            let counted = 0;
            for (const { queries, keys, full } of tiles) {
              for (const q of at(queries)) {
                for (const k of at(keys)) {
                  if (!allows(band, q, k)) {
                    assert.ok(!full, "a full tile has a forbidden pair");
                    continue;
                  }
                  counted++;
                  times.set(q * tokens + k, (times.get(q * tokens + k) ?? 0) + 1);
                }
              }
            }
            assert.equal(counted, pairs);
          }
        }
        for (let q = 0; q < tokens; q++) {
          for (let k = 0; k < tokens; k++) {
            assert.equal(times.get(q * tokens + k) ?? 0, allows(band, q, k) ? 1 : 0, `${q}, ${k}`);
          }
        }
        assert.equal(plan.pairs, times.size);
        assert.equal(plan.flops, 4 * 8 * 2 * times.size);
      },
    ),
    { numRuns: 300 },
  );
});

Deno.test("planOf() what a rank receives is what its left neighbour sends, in that order", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5000 }),
      anyMask,
      fc.constantFrom(...layouts),
      anyRing,
      (tokens, mask, layout, weights) => {
        const wide = {
          ...spec(tokens, mask, layout, weights),
          problem: problem(tokens, mask, { kvHeads: 2, headDim: 256 }),
        };
        const plan = Result.getOrThrow(planOf(wide));
        for (const { rank, receives, steps } of plan.ranks) {
          const left = plan.ranks[(rank - 1 + plan.ring) % plan.ring]!;
          assert.deepEqual(receives.map(({ block }) => block), left.sends);
          // Compute takes arrivals from a queue in this order, so its steps must come in the same.
          const arrivals = receives.filter(({ compute }) => compute).map(({ block }) => block.id);
          const computed = steps.filter((step) => step.state !== "skip" && step.distance > 0);
          assert.deepEqual(computed.map(({ block }) => block.id), arrivals);
        }
        for (const block of plan.blocks) {
          const needs = plan.ranks.flatMap(({ steps }) =>
            steps.filter((step) => step.block === block && step.pairs > 0)
          );
          assert.equal(block.hops, Math.max(0, ...needs.map(({ distance }) => distance)));
        }
      },
    ),
    { numRuns: 100 },
  );
});

Deno.test("planOf() full mask: N − 1 hops, and bytes 2 · c · Hkv · d · e a hop", () => {
  for (const ring of [1, 2, 3, 5, 8]) {
    const plan = planned(3816, full, "contiguous", ring);
    for (const block of plan.blocks) assert.equal(block.hops, ring - 1);
    plan.ranks.forEach(({ sentBytes }, rank) => {
      // A rank sends every block but those of its right neighbour, which have arrived where they end.
      const tokens = 3816 - plan.ranks[(rank + 1) % ring]!.tokens;
      assert.equal(sentBytes, ring === 1 ? 0 : 2 * tokens * 1 * 8 * 4);
    });
  }
});

Deno.test("planOf() zigzag causal: 2N·g² + g pairs a rank, 2g² + g at home and 2g² a step after", () => {
  for (const [ring, g] of [[1, 5], [2, 7], [4, 16], [8, 512]] as const) {
    const plan = planned(2 * ring * g, causal, "zigzag", ring);
    for (const { rank, pairs } of plan.ranks) {
      assert.equal(pairs, 2 * ring * g * g + g);
      const [home, ...later] = byDistance(plan, rank);
      assert.equal(home, 2 * g * g + g);
      for (const pairs of later) assert.equal(pairs, 2 * g * g);
      for (const step of plan.ranks[rank]!.steps.filter(({ distance }) => distance > 0)) {
        assert.ok(step.tiles.every(({ full }) => full), "no masked tile after step 0");
      }
    }
  }
});

Deno.test("planOf() striped causal: inclusive triangles from the left, strict ones from the right", () => {
  const [ring, L] = [5, 13];
  const plan = planned(ring * L, causal, "striped", ring);
  for (const { rank, pairs } of plan.ranks) {
    assert.equal(pairs, (rank + 1) * L * (L + 1) / 2 + (ring - 1 - rank) * L * (L - 1) / 2);
    byDistance(plan, rank).forEach((pairs, distance) => {
      const inclusive = rank - distance >= 0;
      assert.equal(pairs, inclusive ? L * (L + 1) / 2 : L * (L - 1) / 2);
    });
  }
});

Deno.test("planOf() contiguous causal: r whole blocks and a triangle; later ranks' blocks are skipped", () => {
  const [ring, c] = [8, 1024];
  const plan = planned(ring * c, causal, "contiguous", ring);
  for (const { rank, pairs } of plan.ranks) {
    assert.equal(pairs, rank * c * c + c * (c + 1) / 2);
    assert.deepEqual(
      byDistance(plan, rank).map((pairs) => pairs > 0),
      Array.from({ length: ring }, (_, distance) => distance <= rank),
    );
  }
  // The last shard is of no use to anybody else, the first to everybody.
  for (const block of plan.blocks) assert.equal(block.hops, ring - 1 - block.home);
  assert.equal(
    sum(plan.ranks.map(({ sentBytes }) => sentBytes)),
    (7 + 6 + 5 + 4 + 3 + 2 + 1) * c * 2 * 8 * 4,
  );
});

Deno.test("balanceOf() zigzag is within 1 % at 8 ranks and 8,192 tokens, contiguous shows (2N−1)/N", () => {
  assert.ok(balanceOf(planned(8192, causal, "zigzag", 8)) <= 1.01);
  assert.ok(balanceOf(planned(8192, causal, "striped", 8)) <= 1.01);
  const contiguous = balanceOf(planned(8192, causal, "contiguous", 8));
  assert.ok(Math.abs(contiguous - 15 / 8) < 0.001, `${contiguous}`);
});

Deno.test("planOf() zigzag: pairs follow the weights", () => {
  const weights = [1, 2, 5];
  const plan = planned(16_000, causal, "zigzag", weights);
  for (const { rank, pairs, tokens } of plan.ranks) {
    assert.equal(tokens, 2000 * weights[rank]!);
    assert.ok(Math.abs(pairs / plan.pairs - weights[rank]! / 8) < 1e-3);
  }
});

Deno.test("planOf() window over contiguous shards: min(N − 1, ⌈(w − 1)/c⌉) hops", () => {
  const [ring, c] = [8, 32];
  for (const window of [1, 2, c - 1, c, c + 1, c + 2, 2 * c + 3, 7 * c, ring * c + 9]) {
    const plan = planned(ring * c, { kind: "window", window }, "contiguous", ring);
    const hops = Math.max(...plan.blocks.map(({ hops }) => hops));
    assert.equal(hops, Math.min(ring - 1, Math.ceil((window - 1) / c)), `window ${window}`);
  }
});

Deno.test("planOf() K/V of a rank: its shard and at most three passing blocks, so 1/N of the whole", () => {
  const held = [1, 2, 4, 8, 16].map((ring) => {
    const wide = {
      ...spec(32_768, full, "contiguous", ring),
      problem: problem(32_768, full, { kvHeads: 2, headDim: 64 }),
    };
    return Math.max(...Result.getOrThrow(planOf(wide)).ranks.map(({ kvBytes }) => kvBytes));
  });
  const whole = 2 * 32_768 * 2 * 64 * 4;
  assert.equal(held[0], whole);
  [2, 4, 8, 16].forEach((ring, i) => assert.equal(held[i + 1], whole / ring * 1.75));
});

Deno.test("planOf() refuses with a sentence that says what is needed and what was found", () => {
  const refusal = (change: Partial<Problem>, weights: ReadonlyArray<number> = [1]) =>
    Result.getOrThrow(
      Result.flip(
        planOf({ ...spec(8, full, "contiguous", weights), problem: problem(8, full, change) }),
      ),
    ).message;
  const cases: ReadonlyArray<readonly [Partial<Problem>, string]> = [
    [{ tokens: 0 }, "the sequence length must be a whole number from 1 to 536870912: found 0"],
    [{ tokens: 2.5 }, "found 2.5"],
    [{ batch: NaN }, "the batch size must be a whole number from 1 to 65535: found NaN"],
    [
      { heads: 5, kvHeads: 2 },
      "the number of query heads must be a multiple of the 2 KV heads: found 5",
    ],
    [{ headDim: 6 }, "the head dim must be a multiple of 4 from 4 to 256: found 6"],
    [{ headDim: 260 }, "found 260"],
    [{ scale: Infinity }, "the score scale must be a finite number: found Infinity"],
    [{ mask: { kind: "window", window: 0 } }, "the window must be a whole number from 1"],
  ];
  for (const [change, sentence] of cases) {
    assert.ok(refusal(change).includes(sentence), refusal(change));
  }
  assert.match(refusal({}, []), /the ring size must be a whole number from 1 to 65534: found 0/);
  assert.match(
    refusal({}, [0, 0]),
    /the weights must be numbers from 0 to 1000000, not all 0: found 0, 0/,
  );
  assert.match(refusal({}, [1, -1]), /found 1, -1/);
  assert.match(refusal({}, [1e308, 1e308]), /found 1e\+308, 1e\+308/);
});

Deno.test("refusalFor() names what a rank needs and which knob to turn, before anything moves", () => {
  const plan = planned(8, full, "contiguous", 1);
  const [{ bytes }] = plan.ranks as [Plan["ranks"][number]];
  assert.equal(refusalFor(plan, bytes), undefined);
  assert.equal(
    refusalFor(plan, bytes - 1)!.message,
    `Cannot place the run: it needs ${bytes} bytes of memory on its fullest rank: found ${
      bytes - 1
    }; ` +
      "use more ranks than 1 (--ring) or a narrower format for K and V (--wire f16)",
  );
});
