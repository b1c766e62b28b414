/**
 * The ring: start reading here. One rank's fibers, without barriers between them: blocks come in from the left and go
 * on to the right, chunk by chunk, while the device computes on the ones that are here. Left and right are the
 * neighbours, or where a mask leaves ranks out, the next ones that need the block.
 *
 * There is room for three blocks beside those at home: one that arrives, one that is queued on the device, one that it
 * computes on; for more where several ranks send at once. A slow device makes the left neighbour wait instead of making
 * a queue grow.
 *
 * @module
 */
import { Effect, Fiber, Queue, Semaphore } from "effect";
import { Block } from "./block.ts";
import type { DeviceFailed, FrameRejected, LinkError, MergeViolation } from "./errors.ts";
import type { Held } from "./held.ts";
import type { Tile } from "./kernel.ts";
import type { Ledger } from "./ledger.ts";
import type { BlockPlan, RankPlan } from "./plan.ts";
import type { Recorder } from "./recorder.ts";

/** A block that the device has done. */
export interface Absorbed {
  /** Milliseconds for which that kept the device busy. */
  readonly busy: number;
  /** What remains to be done about it, block after block in the order of the plan. */
  readonly deliver: Effect.Effect<void>;
}

/** What a rank needs for its part of the ring. */
export interface RingParts {
  readonly plan: RankPlan;
  /** The rank's own blocks, by id; each is released through `held` when it is computed and sent. */
  readonly home: ReadonlyMap<number, Block>;
  /** What has been merged, also before this turn of the ring. */
  readonly ledger: Ledger;
  readonly held: Held;
  /** Computes on a block. */
  readonly absorb: (
    block: Block,
    tiles: ReadonlyArray<Tile>,
  ) => Effect.Effect<Absorbed, DeviceFailed>;
  /** Fills the block. */
  readonly receiveLeft: (block: Block) => Effect.Effect<void, LinkError | FrameRejected>;
  /** Sends each part of the block once it is there. */
  readonly sendRight: (block: Block, to: number) => Effect.Effect<void, LinkError>;
  readonly recorder: Recorder;
  /** Asked after every block that went to the device: what is to be done once it has done them all, and before the next. */
  readonly between?: () => Effect.Effect<void, DeviceFailed> | undefined;
}

/** Lets every block of the sequence that the rank's queries need pass by its device, each exactly once. */
export const ring = Effect.fn("ring")(function* (
  { plan, home, ledger, held, absorb, receiveLeft, sendRight, recorder, between }: RingParts,
) {
  const arrived = yield* Queue.bounded<Block>(plan.room);
  const onward = yield* Queue.bounded<Block>(plan.room);
  const room = yield* Semaphore.make(plan.room);
  const computed = plan.steps.filter(({ state }) => state !== "skip");
  const onlyPassing = new Set(
    plan.steps.filter(({ state }) => state === "skip").map(({ block }) => block.id),
  );
  const tilesOf = new Map(computed.map(({ block, tiles }) => [block.id, tiles]));
  const about = (block: BlockPlan) => ({
    step: (plan.rank - block.home + plan.ring) % plan.ring,
    block: block.id,
    bytes: block.bytes,
  });

  const release = ({ plan: block }: Block) =>
    Effect.suspend(() =>
      held.release(block) && !home.has(block.id) ? Semaphore.release(room, 1) : Effect.void
    );

  const receive = Effect.forEach(
    plan.receives,
    ({ block: next, to }) =>
      Effect.gen(function* () {
        yield* Semaphore.take(room, 1);
        const wanted = !onlyPassing.has(next.id);
        held.hold(next, (wanted ? 1 : 0) + (to === undefined ? 0 : 1));
        const block = Block.expected(next);
        if (to !== undefined) yield* Queue.offer(onward, block);
        yield* receiveLeft(block);
        if (wanted) yield* Queue.offer(arrived, block);
      }),
    { discard: true },
  );

  const forward = Effect.forEach(plan.sends, ({ block: next, to }) =>
    Effect.gen(function* () {
      const block = home.get(next.id) ?? (yield* Queue.take(onward));
      yield* sendRight(block, to);
      yield* release(block);
    }), { discard: true });

  // The next block is queued on the device before the last one is awaited.
  const slots = yield* Semaphore.make(2);
  const working = yield* Queue.bounded<Fiber.Fiber<Absorbed, DeviceFailed | MergeViolation>>(2);
  const compute = Effect.forEach(computed, ({ block: next }) =>
    Effect.gen(function* () {
      yield* Semaphore.take(slots, 1);
      const wait = recorder.idle({ activity: "wait", ...about(next) }, Queue.take(arrived));
      const block = home.get(next.id) ?? (yield* wait);
      // Whatever ends the run meanwhile, a block is merged and entered, or neither.
      const work = ledger.enter(block.plan.id).pipe(
        Effect.andThen(recorder.lasted(
          { activity: "compute", ...about(block.plan) },
          absorb(block, tilesOf.get(block.plan.id)!),
        )),
        Effect.tap(release(block)),
        Effect.uninterruptible,
      );
      yield* Queue.offer(working, yield* Effect.forkScoped(work, { startImmediately: true }));
      const pause = between?.();
      if (pause !== undefined) yield* Semaphore.withPermits(slots, 2)(pause);
    }), { discard: true });
  const settle = Effect.forEach(computed, () =>
    Effect.gen(function* () {
      const { deliver } = yield* Fiber.join(yield* Queue.take(working));
      yield* deliver;
      yield* Semaphore.release(slots, 1);
    }), { discard: true });

  yield* Effect.all([receive, forward, compute, settle], {
    concurrency: "unbounded",
    discard: true,
  });
  yield* ledger.complete;
}, Effect.scoped);
