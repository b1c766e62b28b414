/**
 * What a rank says of itself twice a second while it works: how far it is, what it waits for, and how its process does.
 * Being alive is one thing, getting on another: a rank whose device has been busy with one thing for far too long is
 * stuck, however well it beats.
 *
 * @module
 */
import { Effect, Schema } from "effect";
import { RankFailed } from "./errors.ts";
import type { Recorder } from "./recorder.ts";
import { activities, type Activity, type Interval } from "./timeline.ts";

/** One beat. */
export const Beat = Schema.Struct({
  rank: Schema.Number,
  /** Milliseconds since the rank began in this epoch. */
  at: Schema.Number,
  /** Blocks that are merged. */
  merged: Schema.Number,
  /** Ranks that share the device. */
  ranks: Schema.Number,
  /** What goes on, and since when. */
  doing: Schema.Array(Schema.Struct({
    activity: Schema.Literals([...activities]),
    step: Schema.Number,
    block: Schema.Number,
    bytes: Schema.Number,
    since: Schema.Number,
  })),
  /** Milliseconds by which this beat was late: what else the process's thread was busy with. */
  late: Schema.Number,
  /** Resident set of the process. */
  rssBytes: Schema.Number,
});
/** One beat. */
export type Beat = typeof Beat.Type;

const every = 500;

/** Beats until it is interrupted. */
export const beating = (
  rank: number,
  recorder: Recorder,
  standing: () => Pick<Beat, "merged" | "ranks">,
  tell: (beat: Beat) => Effect.Effect<void>,
): Effect.Effect<never> =>
  Effect.gen(function* () {
    const before = yield* recorder.now;
    yield* Effect.sleep(every);
    const at = yield* recorder.now;
    yield* tell({
      ...{ rank, at, ...standing(), doing: recorder.doing },
      late: Math.max(0, at - before - every),
      rssBytes: Deno.memoryUsage().rss,
    });
  }).pipe(Effect.forever);

/** What devices do. */
const ofDevices: ReadonlyArray<Activity> = ["begin", "compute", "finish"];

/** A device may be busy with one thing for so long until anything is known of it, and at least. */
const [unknown, least] = [600_000, 60_000];
/** And for so many times as long as the longest block took. */
const times = 5;

/** Blocks that a rank may have queued on its device. */
const queued = 2;

/** For how many milliseconds a rank has waited for its device, if that is more than it may take; else 0. */
export const overdue = ({ at, ranks, doing }: Beat, longest: number | undefined): number => {
  const one = longest === undefined ? unknown : Math.max(least, times * longest);
  const since = doing.filter(({ activity }) => ofDevices.includes(activity)).map(({ since }) =>
    since
  );
  const waited = since.length === 0 ? 0 : at - Math.min(...since);
  return waited > queued * ranks * one ? waited : 0;
};

/** Hears of a run's ranks, and says of one that its device is stuck. */
export class Watch {
  #longest: number | undefined;

  /** The longest block so far is the measure. */
  see({ activity, begin, end }: Interval): void {
    if (activity === "compute") this.#longest = Math.max(this.#longest ?? 0, end - begin);
  }

  /** The failure of a rank whose device has been busy with one thing for far too long. */
  verdict(beat: Beat): RankFailed | undefined {
    const milliseconds = overdue(beat, this.#longest);
    if (milliseconds === 0) return undefined;
    const seconds = (milliseconds / 1000).toFixed(0);
    const reason = `its device has been busy with one thing for ${seconds} s`;
    return new RankFailed({ rank: beat.rank, node: "its node", tag: "Stuck", reason });
  }
}
