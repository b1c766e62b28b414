/**
 * The crew port: who computes the ranks of a run. Ranks may be fibers of this process or nodes elsewhere; the driver
 * does not know which.
 *
 * @module
 */
import { Context, Effect, Layer } from "effect";
import { Device } from "./device.ts";
import { RankFailed } from "./errors.ts";
import type { Job } from "./job.ts";
import { Links } from "./link.ts";
import { attendRank, type RankError, type RankSummary } from "./rank.ts";
import type { Interval } from "./timeline.ts";

/** Who hears of the ranks of a run. */
export interface CrewObserver {
  readonly interval: (interval: Interval) => Effect.Effect<void>;
  readonly finished: (summary: RankSummary) => Effect.Effect<void>;
  readonly failed: (error: RankFailed) => Effect.Effect<void>;
}

/** Gives ranks to members. */
export class Crew extends Context.Service<Crew, {
  /** Runs one rank until its links are closed; interrupting it frees the member. */
  readonly run: (
    job: Job,
    rank: number,
    observer: CrewObserver,
  ) => Effect.Effect<void, RankFailed>;
}>()("annulus/runtime/Crew") {
  /** All ranks in this process, on one device. A function: one layer would be built once for all devices and links. */
  static readonly local = (): Layer.Layer<Crew, never, Device | Links> =>
    Layer.effect(
      Crew,
      Effect.gen(function* () {
        const context = yield* Effect.context<Device | Links>();
        return Crew.of({
          run: (job, rank, { interval, finished, failed }) => {
            const blame = (error: RankError) =>
              new RankFailed({
                rank,
                node: "this process",
                tag: error._tag,
                reason: error.message,
              });
            return attendRank(job, rank, {
              interval,
              finished,
              failed: (error) => failed(blame(error)),
            }).pipe(Effect.mapError(blame), Effect.provideContext(context));
          },
        });
      }),
    );
}
