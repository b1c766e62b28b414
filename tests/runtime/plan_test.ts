import assert from "node:assert/strict";
import { Result } from "effect";
import fc from "fast-check";
import { type Layout, layouts } from "../../runtime/layout.ts";
import { allows } from "../../runtime/mask.ts";
import {
  balanceOf,
  type Plan,
  planOf,
  type PlanSpec,
  type Problem,
  refusalFor,
} from "../../runtime/plan.ts";
import { positionAt, type Span } from "../../runtime/span.ts";
import {
  blocks,
  causal as causalVariant,
  chunked,
  documents,
  prefix,
  sinkWindow,
} from "../../plugins/attention.ts";
import {
  bandOf,
  causal,
  full,
  type Mask,
  randomBlocks,
  window as windowed,
} from "../support/masks.ts";

const problem = (tokens: number, mask: Mask, more: Partial<Problem> = {}): Problem => ({
  batch: 1,
  tokens,
  heads: 2,
  kvHeads: 1,
  headDim: 8,
  scale: 1,
  attention: mask,
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
  fc.integer({ min: 1, max: 150 }).map(windowed),
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

Deno.test("planOf() what a rank receives is what others send it, in that order, and what it computes on", () => {
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
          for (const { rank: other, sends } of plan.ranks) {
            assert.deepEqual(
              receives.filter(({ from }) => from === other).map(({ block }) => block),
              sends.filter(({ to }) => to === rank).map(({ block }) => block),
            );
          }
          // Compute takes arrivals from a queue in this order, so its steps must come in the same.
          const arrivals = receives.map(({ block }) => block.id);
          const computed = steps.filter((step) => step.state !== "skip" && step.distance > 0);
          assert.deepEqual(computed.map(({ block }) => block.id), arrivals);
        }
        for (const block of plan.blocks) {
          const needs = plan.ranks.flatMap(({ steps }) =>
            steps.filter((step) => step.block === block && step.pairs > 0 && step.distance > 0)
          );
          const stops = needs.map(({ distance }) => distance).sort((a, b) => a - b)
            .map((distance) => (block.home + distance) % plan.ring);
          assert.deepEqual(block.path, stops);
        }
      },
    ),
    { numRuns: 100 },
  );
});

Deno.test("planOf() full mask: N − 1 hops, and bytes 2 · c · Hkv · d · e a hop", () => {
  for (const ring of [1, 2, 3, 5, 8]) {
    const plan = planned(3816, full, "contiguous", ring);
    for (const block of plan.blocks) assert.equal(block.path.length, ring - 1);
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
  for (const block of plan.blocks) assert.equal(block.path.length, ring - 1 - block.home);
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
    const plan = planned(ring * c, windowed(window), "contiguous", ring);
    const hops = Math.max(...plan.blocks.map(({ path }) => path.length));
    assert.equal(hops, Math.min(ring - 1, Math.ceil((window - 1) / c)), `window ${window}`);
  }
});

/** Tokens that come to each rank. */
const received = (plan: Plan): ReadonlyArray<number> =>
  plan.ranks.map(({ receives }) => sum(receives.map(({ block }) => block.span.count)));

Deno.test("planOf() window over contiguous shards: a rank gets the halo, and nothing else", () => {
  const [ring, c] = [8, 32];
  for (const window of [1, 2, c - 1, c, c + 1, c + 2, 2 * c + 3, 7 * c, ring * c + 9]) {
    const plan = planned(ring * c, windowed(window), "contiguous", ring);
    assert.deepEqual(
      received(plan),
      Array.from({ length: ring }, (_, rank) => Math.min(window - 1, rank * c)),
    );
    // Σ over the distances of what is left of the halo there, of each rank that has so many before it.
    const halo = sum(
      Array.from(
        { length: ring - 1 },
        (_, i) => (ring - 1 - i) * Math.min(c, Math.max(0, window - 1 - i * c)),
      ),
    );
    assert.equal(sum(plan.ranks.map(({ sentBytes }) => sentBytes)), halo * 2 * 8 * 4);
  }
});

Deno.test("planOf() a window of 4,096 over 32,768 tokens on 8 ranks moves 4,095 tokens a rank", () => {
  const plan = planned(32_768, windowed(4096), "contiguous", 8);
  assert.deepEqual(received(plan), [0, ...Array(7).fill(4095)]);
  assert.equal(sum(plan.ranks.map(({ sentBytes }) => sentBytes)), 7 * 4095 * 2 * 8 * 4);
  assert.ok(plan.blocks.every(({ path }) => path.length <= 1));
});

Deno.test("planOf() brings a rank no key but those that its queries see, and each once", () => {
  const attention = fc.oneof(
    anyMask,
    fc.constantFrom(...[
      [documents({ cu_seqlens: [0, 64, 128, 320, 960] })],
      [chunked({ size: 192 }), causalVariant()],
      [prefix({ length: 128 })],
      [sinkWindow({ first: 64, size: 64 }), causalVariant()],
    ]),
  );
  const property = fc.property(
    attention,
    fc.constantFrom("contiguous", "zigzag"),
    fc.integer({ min: 1, max: 6 }),
    (mask, layout, ring) => {
      const plan = planned(960, mask, layout, ring);
      const { sees } = plan.attention;
      const shards = plan.ranks.map(({ shard }) => shard.flatMap(at));
      plan.ranks.forEach(({ rank, receives }) => {
        const keys = receives.flatMap(({ block }) => at(block.span));
        assert.equal(new Set(keys).size, keys.length, "a key comes twice");
        const mine = new Set(shards[rank]);
        const needed = new Set<number>();
        for (const q of mine) {
          for (let k = 0; k < 960; k++) if (!mine.has(k) && sees(0, 0, q, k)) needed.add(k);
        }
        for (const k of needed) assert.ok(keys.includes(k), `rank ${rank} lacks key ${k}`);
        // What a mask says of tiles is known in steps of 64 tokens at each end of a stretch.
        const most = plan.attention.mask === undefined ? 0 : 4 * 64;
        assert.ok(keys.length - needed.size <= most, `${keys.length} for ${needed.size}`);
      });
    },
  );
  fc.assert(property, { numRuns: 60 });
});

Deno.test("planOf() documents within a rank need no hop", () => {
  const bounds = [0, 30, 100, 100, 150, 200, 300];
  const plan = planned(300, [documents({ cu_seqlens: bounds })], "contiguous", 3);
  assert.ok(plan.blocks.every(({ path }) => path.length === 0));
  const pairs = bounds.slice(1).map((end, i) => (end - bounds[i]!) ** 2);
  assert.equal(plan.pairs, sum(pairs));
  assert.ok(plan.counted);
});

Deno.test("planOf() sends a block of a table to the ranks that need it, and to no other", () => {
  const [ring, c] = [8, 64];
  const mask = randomBlocks(ring * c, c, 5);
  const table = mask[0]!.params["table"] as ReadonlyArray<number>;
  const plan = planned(ring * c, mask, "contiguous", ring);
  for (const { home, path } of plan.blocks) {
    const needed = Array.from({ length: ring - 1 }, (_, i) => (home + i + 1) % ring)
      .filter((rank) => table[rank * ring + home] === 1);
    assert.deepEqual(path, needed);
  }
  assert.equal(plan.pairs, sum(table) * c * c);
});

Deno.test("planOf() sends of a shard what is needed of it, in however many stretches", () => {
  const [size, n] = [64, 24];
  // Every other block of the first half is needed by the second, and nothing of the second by the first.
  const table = Array.from({ length: n * n }, (_, i) => {
    const [query, key] = [Math.floor(i / n), i % n];
    return Number(query === key || (query >= n / 2 && key < n / 2 && key % 2 === 0));
  });
  const { ranks: [first, second] } = planned(n * size, [blocks({ size, table })], "contiguous", 2);
  const received = ({ receives }: Plan["ranks"][number]) =>
    sum(receives.map(({ block }) => block.span.count));
  assert.deepEqual([received(first!), received(second!)], [0, n / 4 * size]);
});

Deno.test("planOf() refuses a variant whose tiles or heads are not what its mask says, with the pair", () => {
  const refusal = (changes: Partial<typeof chunked.definition>) => {
    const definition = { ...chunked.definition, ...changes };
    const attention = [{ definition, params: { size: 64 } }];
    const { message } = Result.getOrThrow(
      Result.flip(planOf({ ...spec(500, [], "zigzag", 3), problem: problem(500, attention) })),
    );
    return message;
  };
  for (const said of ["all", "none"] as const) {
    assert.match(
      refusal({ tile: () => () => said }),
      RegExp(
        `"chunked": it needs tiles that say what its mask does: found a tile that says "${said}" of`,
      ),
    );
  }
  assert.match(
    refusal({ mask: () => (_b, h, q, k) => q - k === h, tile: () => () => "some" }),
    /needs perHead where its mask differs .*: found another answer .* of batch entry 0, head 1, query/,
  );
});

Deno.test("planOf() says where pairs are too many to be counted, and computes them all the same", () => {
  const { tile: _, ...untold } = chunked.definition;
  const unknown = (size: number): Mask => [{ definition: untold, params: { size } }];
  const small = planned(2048, unknown(64), "contiguous", 2);
  assert.deepEqual([small.counted, small.pairs], [true, 2048 * 64]);
  const large = planned(65_536, unknown(4096), "contiguous", 2);
  assert.equal(large.counted, false);
  assert.ok(large.pairs >= 65_536 * 4096);
});

Deno.test("planOf() K/V of a rank: its shard and at most three passing blocks, so 1/N of the whole", () => {
  for (const [attention, layout] of [[full, "contiguous"], [causal, "zigzag"]] as const) {
    const held = [1, 2, 4, 8, 16].map((ring) => {
      const wide = {
        ...spec(32_768, attention, layout, ring),
        problem: problem(32_768, attention, { kvHeads: 2, headDim: 64 }),
      };
      return Math.max(...Result.getOrThrow(planOf(wide)).ranks.map(({ kvBytes }) => kvBytes));
    });
    const whole = 2 * 32_768 * 2 * 64 * 4;
    assert.equal(held[0], whole);
    [2, 4, 8, 16].forEach((ring, i) => assert.equal(held[i + 1], whole / ring * 1.75, layout));
  }
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
    [
      { attention: windowed(0) },
      'Cannot use attention "window": it needs its parameter "size": found ' +
      "0 (Expected a value greater than or equal to 1)",
    ],
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
