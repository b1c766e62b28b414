/**
 * The way home of gradients. What a block's keys and values get from a rank's queries, that rank alone can compute; the
 * shares travel in the direction of the ring, each rank adding its own to what came from the left, until they are home.
 * The home rank's own share waits there, so that a block's gradients need as many hops as its K and V did.
 *
 * All sums are float32, in the order of the ring whatever arrives when, so that a run gives the same bits every time.
 *
 * @module
 */
import { Effect, Queue } from "effect";
import type { DeviceFailed, FrameRejected, LinkError } from "./errors.ts";
import { MergeViolation } from "./errors.ts";
import type { BlockPlan, HomingPlan, RankPlan } from "./plan.ts";

/** dk then dv of one block. */
export interface Gradients {
  readonly block: BlockPlan;
  readonly values: Float32Array;
}

/** What a rank needs to pass gradients on. */
export interface HomingParts {
  readonly plan: RankPlan;
  /** The rank's own shares, in the order of its steps. */
  readonly own: Queue.Dequeue<Gradients, DeviceFailed>;
  readonly receiveLeft: (
    block: BlockPlan,
  ) => Effect.Effect<Float32Array, LinkError | FrameRejected>;
  readonly sendRight: (gradients: Gradients, to: number) => Effect.Effect<void, LinkError>;
}

const add = (sum: Float32Array, more: Float32Array): void => {
  for (let i = 0; i < sum.length; i++) sum[i]! += more[i]!;
};

/** Passes gradients on until those of every home block are whole; gives them by block id. */
export const homing = Effect.fn("homing")(function* (
  { plan, own, receiveLeft, sendRight }: HomingParts,
) {
  const home = new Map<number, Float32Array>();
  // As in `ring.ts`: who waits for its right neighbour to take something must be able to take all that this one waits for.
  const arrived = yield* Queue.bounded<Float32Array>(plan.homingRoom);

  const receive = Effect.forEach(
    plan.homing.filter(({ from }) => from !== undefined),
    ({ block }) => Effect.flatMap(receiveLeft(block), (values) => Queue.offer(arrived, values)),
    { discard: true },
  );

  /** The rank's own share of the block that comes next. */
  const ownOf = Effect.fnUntraced(function* ({ block }: HomingPlan) {
    const share = yield* Queue.take(own);
    if (share.block.id === block.id) return share.values;
    return yield* new MergeViolation({ rank: plan.rank, block: block.id, times: 0 });
  });

  const passOn = Effect.forEach(plan.homing, (item) =>
    Effect.gen(function* () {
      const { block, from, to } = item;
      const mine = item.own ? yield* ownOf(item) : home.get(block.id);
      const values = from === undefined ? mine! : yield* Queue.take(arrived);
      if (from !== undefined && mine !== undefined) add(values, mine);
      if (to === undefined) home.set(block.id, values);
      else yield* sendRight({ block, values }, to);
    }), { discard: true });

  yield* Effect.all([receive, passOn], { concurrency: "unbounded", discard: true });
  return home;
});
