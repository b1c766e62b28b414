/**
 * The flight recorder of a run: the last that the driver heard of each rank, kept in case the run fails.
 *
 * @module
 */
import { Clock, Effect, Schema } from "effect";
import { Beat } from "./beat.ts";
import type { Recovery, RunObserver } from "./driver.ts";
import type { Plan } from "./plan.ts";
import { activities, type Interval } from "./timeline.ts";

const milliseconds = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6);

/** Events that are kept of each rank. */
const kept = 4096;

/** Something that was heard, in milliseconds since the run began, on the driver's clock. */
export const FlightEvent = Schema.Struct({
  at: Schema.Number,
  rank: Schema.Number,
  event: Schema.Union([
    Schema.Struct({
      interval: Schema.Struct({
        activity: Schema.Literals([...activities]),
        step: Schema.Number,
        block: Schema.Number,
        milliseconds: Schema.Number,
        bytes: Schema.Number,
      }),
    }),
    Schema.Struct({ beat: Beat }),
  ]),
});
/** Something that was heard. */
export type FlightEvent = typeof FlightEvent.Type;

/** All that is kept of a run that failed. */
export const Flight = Schema.Struct({
  version: Schema.Literal(1),
  /** The failure, in its own sentence, and when it was known. */
  failure: Schema.String,
  at: Schema.Number,
  recoveries: Schema.Array(Schema.Struct({
    epoch: Schema.Number,
    cause: Schema.String,
    at: Schema.Number,
    moved: Schema.Array(Schema.Struct({ rank: Schema.Number, to: Schema.String })),
  })),
  /** By rank: how many blocks it computes on, and where blocks come from and go to. */
  ranks: Schema.Array(Schema.Struct({
    required: Schema.Number,
    receives: Schema.Array(Schema.Struct({ block: Schema.Number, from: Schema.Number })),
    sends: Schema.Array(Schema.Struct({ block: Schema.Number, to: Schema.Number })),
  })),
  /** In the order in which they were heard. */
  events: Schema.Array(FlightEvent),
});
/** All that is kept of a run that failed. */
export type Flight = typeof Flight.Type;

/** Hears what an observer of a run hears. */
export class FlightRecorder implements RunObserver {
  readonly #events: ReadonlyArray<Array<FlightEvent>>;
  readonly #recoveries: Array<Recovery> = [];

  /** @param began When the run did, in milliseconds. */
  constructor(readonly plan: Plan, readonly began: number) {
    this.#events = plan.ranks.map(() => []);
  }

  /** For a run that begins now. */
  static readonly start = (plan: Plan): Effect.Effect<FlightRecorder> =>
    Effect.map(milliseconds, (now) => new FlightRecorder(plan, now));

  readonly interval = ({ rank, activity, step, block, begin, end, bytes }: Interval) =>
    this.#keep(rank, { interval: { activity, step, block, milliseconds: end - begin, bytes } });
  readonly beat = (beat: Beat) => this.#keep(beat.rank, { beat });
  readonly recovered = (recovery: Recovery) =>
    Effect.sync(() => void this.#recoveries.push(recovery));

  /** What is to be written when the run has failed. */
  written(failure: string): Effect.Effect<Flight> {
    return Effect.map(this.#now, (at): Flight => ({
      version: 1,
      failure,
      at,
      recoveries: this.#recoveries,
      ranks: this.plan.ranks.map(({ steps, receives, sends }) => ({
        required: steps.filter(({ state }) => state !== "skip").length,
        receives: receives.map(({ block: { id }, from }) => ({ block: id, from })),
        sends: sends.map(({ block: { id }, to }) => ({ block: id, to })),
      })),
      events: this.#events.flat().sort((a, b) => a.at - b.at),
    }));
  }

  readonly #now = Effect.map(milliseconds, (now) => now - this.began);

  #keep(rank: number, event: FlightEvent["event"]): Effect.Effect<void> {
    return Effect.map(this.#now, (at) => {
      const events = this.#events[rank];
      if (events === undefined) return; // a node said so, not the plan
      events.push({ at, rank, event });
      if (events.length > kept) events.shift();
    });
  }
}
