/**
 * The crew port: who computes the ranks of a run. Ranks may be fibers of this process or nodes elsewhere; the driver
 * does not know which.
 *
 * @module
 */
import { Context, Effect, Fiber, Layer } from "effect";
import type { Beat } from "./beat.ts";
import { Device } from "./device.ts";
import { type LinkError, RankFailed, type ServerUnavailable } from "./errors.ts";
import type { Job, Work } from "./job.ts";
import type { DeviceInfo } from "./kernel.ts";
import { Links } from "./link.ts";
import type { RankError, RankSummary } from "./rank.ts";
import { runRank } from "./run_rank.ts";
import type { Standing } from "./standing.ts";
import { Tenure } from "./tenure.ts";
import type { Interval } from "./timeline.ts";

/** The ranks of a run after one of them failed. */
export interface Regrouped {
  readonly standings: ReadonlyArray<Standing>;
  /** Ranks that have another member now, with words for it. */
  readonly moved: ReadonlyArray<{ readonly rank: number; readonly to: string }>;
}

/** What the ranks of a crew compute with. */
export interface Equipment {
  readonly devices: ReadonlyArray<DeviceInfo>;
  /** Bytes of memory that a rank has where there are so many. */
  readonly memory: (ring: number) => number;
  /** Ranks are in one process, which holds once what all of them need. */
  readonly together: boolean;
}

/** Who hears of the ranks of a run. */
export interface CrewObserver {
  readonly interval: (interval: Interval) => Effect.Effect<void>;
  readonly beat: (beat: Beat) => Effect.Effect<void>;
  readonly finished: (summary: RankSummary) => Effect.Effect<void>;
  readonly failed: (error: RankFailed) => Effect.Effect<void>;
}

/** How long a device may take to end what it has begun when nobody waits for it any more: one that hangs never does. */
const stopWithin = "10 seconds";

/** The same effect, which is left alone where it does not end within a while of its interruption. */
const abandoned = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.forkDetach(restore(effect), { startImmediately: true }),
      (fiber) =>
        Effect.onInterrupt(
          restore(Fiber.join(fiber)),
          () => Effect.timeoutOption(Fiber.interrupt(fiber), stopWithin),
        ),
    )
  );

/** Gives ranks to members. */
export class Crew extends Context.Service<Crew, {
  readonly equipment: Equipment;
  /** Runs one rank, through one epoch, until its links are closed; interrupting it frees the member. */
  readonly run: (
    work: Work,
    rank: number,
    observer: CrewObserver,
  ) => Effect.Effect<void, RankFailed>;
  /**
   * After a failure: stops what goes on, gives ranks that have lost their member to another one that can take them, and
   * says how every rank stands in the epoch that is to begin. Absent where no other member could take a rank.
   */
  readonly regroup?: (
    job: Job,
    epoch: number,
    failure: RankFailed | LinkError,
  ) => Effect.Effect<Regrouped, RankFailed | ServerUnavailable>;
  /** The run is over, however it ended: returns when its members are free for another one. */
  readonly ended?: (run: string) => Effect.Effect<void>;
}>()("annulus/runtime/Crew") {
  /** All ranks in this process, on one device. A function: one layer would be built once for all devices and links. */
  static readonly local = (): Layer.Layer<Crew, never, Device | Links> =>
    Layer.effect(
      Crew,
      Effect.gen(function* () {
        const context = yield* Effect.context<Device | Links>();
        const { info } = Context.get(context, Device);
        return Crew.of({
          // The ranks share one machine.
          equipment: { devices: [info], memory: (ring) => info.memory / ring, together: true },
          run: (work, rank, { interval, beat, finished, failed }) => {
            const blame = (error: RankError) =>
              new RankFailed({
                rank,
                node: "this process",
                tag: error._tag,
                reason: error.message,
              });
            return Effect.scoped(Effect.gen(function* () {
              const tenure = new Tenure(rank, yield* Effect.scope);
              yield* runRank(work, tenure, {
                interval,
                beat,
                finished,
                failed: (error) => failed(blame(error)),
              });
            })).pipe(abandoned, Effect.mapError(blame), Effect.provideContext(context));
          },
        });
      }),
    );
}
