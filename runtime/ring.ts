/**
 * The ring: start reading here. One rank's three fibers, without barriers between them: blocks come in from the left
 * and go on to the right while the device computes on the ones that are here.
 *
 * A block is in one of three places beside home: being received, waiting in a queue, or in use. There is room for three,
 * so that a slow device makes the left neighbour wait instead of making a queue grow.
 *
 * @module
 */
import { Effect, Queue, Semaphore } from "effect";
import type { Accumulator } from "./device.ts";
import type { FrameRejected, LinkError } from "./errors.ts";
import type { Block, Held } from "./held.ts";
import { Ledger } from "./ledger.ts";
import type { Band } from "./mask.ts";
import { type BlockPlan, passingBlocks, type RankPlan } from "./plan.ts";
import type { Recorder } from "./recorder.ts";
import type { DType } from "./dtype.ts";

/** What a rank needs for its part of the ring. */
export interface RingParts {
  readonly plan: RankPlan;
  readonly band: Band;
  readonly dtype: DType;
  /** The rank's own blocks, by id; each is released through `held` when it is computed and sent. */
  readonly home: ReadonlyMap<number, Block>;
  readonly held: Held;
  readonly accumulator: Accumulator;
  readonly receiveLeft: (
    block: BlockPlan,
  ) => Effect.Effect<Uint8Array, LinkError | FrameRejected>;
  readonly sendRight: (block: Block) => Effect.Effect<void, LinkError>;
  readonly recorder: Recorder;
}

/** Attention of one query shard over the whole sequence: [batch, tokens, heads, headDim] and its lse. */
export const ring = Effect.fn("ring")(function* (
  { plan, band, dtype, home, held, accumulator, receiveLeft, sendRight, recorder }: RingParts,
) {
  const arrived = yield* Queue.bounded<Block>(1);
  const onward = yield* Queue.bounded<Block>(1);
  // The queues alone would let five blocks pass: two that are only computed on, two that only go on, one arriving.
  const room = yield* Semaphore.make(passingBlocks);
  const computed = plan.steps.filter(({ state }) => state !== "skip");
  const tilesOf = new Map(computed.map(({ block, tiles }) => [block.id, tiles]));
  const ledger = new Ledger(plan.rank, [...tilesOf.keys()]);
  const about = (block: BlockPlan) => ({
    step: (plan.rank - block.home + plan.ring) % plan.ring,
    block: block.id,
    bytes: block.bytes,
  });

  const release = (block: BlockPlan) =>
    Effect.suspend(() =>
      held.release(block) && !home.has(block.id) ? Semaphore.release(room, 1) : Effect.void
    );

  const receive = Effect.forEach(
    plan.receives,
    ({ block, compute, forward }) =>
      Effect.gen(function* () {
        yield* Semaphore.take(room, 1);
        held.hold(block, Number(compute) + Number(forward));
        const bytes = yield* receiveLeft(block);
        if (forward) yield* Queue.offer(onward, { plan: block, bytes });
        if (compute) yield* Queue.offer(arrived, { plan: block, bytes });
      }),
    { discard: true },
  );

  const forward = Effect.forEach(plan.sends, (next) =>
    Effect.gen(function* () {
      const block = home.get(next.id) ?? (yield* Queue.take(onward));
      yield* recorder.timed({ activity: "forward", ...about(next) }, sendRight(block));
      yield* release(next);
    }), { discard: true });

  const compute = Effect.forEach(computed, ({ block: next }) =>
    Effect.gen(function* () {
      const waiting = recorder.timed({ activity: "wait", ...about(next) }, Queue.take(arrived));
      const block = home.get(next.id) ?? (yield* waiting);
      const { id, span } = block.plan;
      const kv = { tokens: span.count, dtype, bytes: block.bytes };
      yield* ledger.enter(id);
      const absorb = accumulator.absorb(kv, tilesOf.get(id)!, band);
      yield* recorder.lasted({ activity: "compute", ...about(block.plan) }, absorb);
      yield* release(block.plan);
    }), { discard: true });

  yield* Effect.all([receive, forward, compute], { concurrency: "unbounded", discard: true });
  yield* ledger.complete;
  return yield* accumulator.finish;
});
