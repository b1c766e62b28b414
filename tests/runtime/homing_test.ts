import { Clock, Deferred, Effect, Fiber, Queue, Result } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { blocks } from "../../plugins/attention.ts";
import type { DeviceFailed } from "../../runtime/errors.ts";
import { type Gradients, homing } from "../../runtime/homing.ts";
import { layouts } from "../../runtime/layout.ts";
import { type Plan, planOf, type PlanSpec } from "../../runtime/plan.ts";
import { uniform } from "../support/random.ts";
import { inVirtualTime } from "../support/virtual_time.ts";
import { causal, full, type Mask, randomBlocks, window } from "../support/masks.ts";

const planned = (
  weights: ReadonlyArray<number>,
  tokens: number,
  layout: PlanSpec["layout"],
  mask: Mask,
): Plan =>
  Result.getOrThrow(planOf({
    problem: { batch: 1, tokens, heads: 8, kvHeads: 8, headDim: 256, scale: 1, attention: mask },
    layout,
    weights,
    wire: "f32",
    gradients: true,
  }));

/** Milliseconds until a rank has its own share of the next block, and that a hop to a rank takes. */
interface Pace {
  readonly compute: (rank: number) => number;
  readonly hop: (to: number) => number;
}

/**
 * Passes gradients around a ring whose links hold nothing. Rank r's share of block b is the one number 2^r in place of
 * all; sums of those tell who took part, and how often.
 */
const turn = (plan: Plan, { compute, hop }: Pace) =>
  Effect.gen(function* () {
    type Sent = Gradients & { readonly taken: Deferred.Deferred<void> };
    const toward = new Map<string, Queue.Queue<Sent>>();
    for (const { rank, homing } of plan.ranks) {
      for (const { to } of homing) toward.set(`${rank} ${to}`, yield* Queue.unbounded<Sent>());
    }
    const results = yield* Effect.forEach(plan.ranks, (mine) =>
      Effect.gen(function* () {
        const { rank } = mine;
        const own = yield* Queue.bounded<Gradients, DeviceFailed>(1);
        const work = Effect.forEach(
          mine.steps.filter(({ state }) => state !== "skip"),
          ({ block }) =>
            Effect.andThen(
              Effect.sleep(compute(rank)),
              Queue.offer(own, { block, values: Float32Array.of(2 ** rank) }),
            ),
        );
        const computing = yield* Effect.forkChild(work, { startImmediately: true });
        const home = yield* homing({
          plan: mine,
          own,
          receiveLeft: ({ id }) =>
            Effect.gen(function* () {
              const { from } = mine.homing.find((item) =>
                item.block.id === id && item.from !== undefined
              )!;
              const { block, values, taken } = yield* Queue.take(toward.get(`${from} ${rank}`)!);
              assert.equal(block.id, id);
              yield* Effect.sleep(hop(rank));
              yield* Deferred.succeed(taken, undefined);
              return values.slice();
            }),
          sendRight: (gradients, to) =>
            Effect.gen(function* () {
              const taken = yield* Deferred.make<void>();
              yield* Queue.offer(toward.get(`${rank} ${to}`)!, { ...gradients, taken });
              yield* Deferred.await(taken);
            }),
        });
        yield* Fiber.join(computing);
        return home;
      }), { concurrency: "unbounded" });
    return { results, milliseconds: yield* Clock.currentTimeMillis };
  });

const anyPlan = fc.record({
  weights: fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 12 })
    .filter((weights) => weights.some((weight) => weight > 0)),
  blocks: fc.integer({ min: 1, max: 4 }),
  layout: fc.constantFrom(...layouts),
  mask: fc.oneof(
    fc.constantFrom<Mask>(full, causal),
    fc.integer({ min: 1, max: 500 }).map(window),
    fc.nat().map((seed) => (tokens: number) => randomBlocks(tokens, 8, seed)),
  ),
}).map(({ weights, blocks, layout, mask }) => {
  const tokens = weights.length * blocks * 16;
  return planned(weights, tokens, layout, typeof mask === "function" ? mask(tokens) : mask);
});

Deno.test("homing() brings every rank's share home exactly once, whatever takes how long", async () => {
  await fc.assert(
    fc.asyncProperty(anyPlan, fc.nat(), async (plan, seed) => {
      const next = uniform(seed);
      const delay = () => Math.floor(50 * next() ** 3);
      const { results } = await inVirtualTime(turn(plan, { compute: delay, hop: delay }));
      for (const { id, home } of plan.blocks) {
        const shares = plan.ranks.filter(({ steps }) =>
          steps.some(({ block, state }) => block.id === id && state !== "skip")
        );
        const wanted = shares.reduce((sum, { rank }) => sum + 2 ** rank, 0);
        assert.equal(results[home]!.get(id)?.[0] ?? 0, wanted, `block ${id}`);
      }
    }),
    { numRuns: 150 },
  );
});

Deno.test("homing() hides its hops behind the arithmetic, but for the last", async () => {
  for (const ranks of [2, 3, 5, 8]) {
    const plan = planned(Array(ranks).fill(1), ranks * 16, "contiguous", full);
    const { milliseconds } = await inVirtualTime(
      turn(plan, { compute: () => 50, hop: () => 30 }),
    );
    assert.equal(milliseconds, ranks * 50 + 30);
  }
});

Deno.test("homing() has room for gradients that several ranks send at once, each of which must go on", async () => {
  // As in `ring_test.ts`: ranks 4 and 9 need what all have, and exchange what has come to them.
  const ranks = 10;
  const table = Array.from({ length: ranks ** 2 }, (_, i) => {
    const [query, key] = [Math.floor(i / ranks), i % ranks];
    return Number(query === key || (query % 5 === 4 && key % 5 !== 4));
  });
  const plan = planned(Array(ranks).fill(1), ranks * 16, "contiguous", [
    blocks({ size: 16, table }),
  ]);
  const { results } = await inVirtualTime(turn(plan, { compute: () => 5, hop: () => 5 }));
  for (const { id, home, path } of plan.blocks) {
    const wanted = [home, ...path].reduce((sum, rank) => sum + 2 ** rank, 0);
    assert.equal(results[home]!.get(id)![0], wanted);
  }
});

Deno.test("homing() refuses a share that is not of the block that comes next", async () => {
  const plan = planned([1, 1], 32, "contiguous", full);
  const mine = plan.ranks[0]!;
  const failing = Effect.gen(function* () {
    const own = yield* Queue.bounded<Gradients, DeviceFailed>(1);
    yield* Queue.offer(own, { block: plan.blocks[1]!, values: Float32Array.of(1) });
    const parts = {
      plan: mine,
      own,
      receiveLeft: () => Effect.never,
      sendRight: () => Effect.never,
    };
    return yield* Effect.flip(homing(parts));
  });
  const error = await Effect.runPromise(failing);
  assert.match(error.message, /block 0 must be merged exactly once: found 0 times/);
});
