/**
 * Writes one rank's timeline as it happens.
 *
 * @module
 */
import { Clock, Effect } from "effect";
import type { Activity, Interval } from "./timeline.ts";

/** What an interval was about. */
export interface About {
  readonly activity: Activity;
  readonly step: number;
  readonly block: number;
  readonly bytes: number;
}

const milliseconds = Effect.map(Clock.currentTimeNanos, (nanos) => Number(nanos) / 1e6);

/** Hands every interval to `publish` as soon as it ended. */
export class Recorder {
  /** Work that is going on, and when the last of it ended. */
  #working = 0;
  #idleSince = 0;

  constructor(
    readonly rank: number,
    /** Milliseconds of this process's clock at which the run began. */
    readonly began: number,
    readonly publish: (interval: Interval) => Effect.Effect<void>,
  ) {}

  /** Records how long `effect` took, if it succeeds. */
  timed<A, E, R>(about: About, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.flatMap(
      milliseconds,
      (begin) =>
        Effect.tap(
          effect,
          () => Effect.flatMap(milliseconds, (end) => this.#write(about, begin, end)),
        ),
    );
  }

  /** Records work that lasted as many milliseconds as it says when it ends. */
  lasted<A extends { readonly busy: number }, E, R>(
    about: About,
    effect: Effect.Effect<A, E, R>,
  ): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      this.#working++;
      return Effect.tap(
        effect,
        ({ busy }) =>
          Effect.flatMap(milliseconds, (end) => {
            this.#working--;
            this.#idleSince = end;
            return this.#write(about, end - busy, end);
          }),
      );
    });
  }

  /** Records for how long `effect` left the rank without work: not while work that `lasted` notes goes on. */
  idle<A, E, R>(about: About, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.flatMap(
      milliseconds,
      (asked) =>
        Effect.tap(
          effect,
          () =>
            Effect.flatMap(milliseconds, (end) =>
              this.#working > 0
                ? Effect.void
                : this.#write(about, Math.max(asked, this.#idleSince), end)),
        ),
    );
  }

  /** Records from the moment at which `effect` runs the mark that it is given until it succeeds. */
  since<A, E, R>(
    about: About,
    effect: (mark: Effect.Effect<void>) => Effect.Effect<A, E, R>,
  ): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      let begin: number | undefined;
      const mark = Effect.map(milliseconds, (now) => void (begin ??= now));
      return Effect.tap(
        effect(mark),
        () => Effect.flatMap(milliseconds, (end) => this.#write(about, begin ?? end, end)),
      );
    });
  }

  #write(about: About, begin: number, end: number): Effect.Effect<void> {
    return this.publish({
      rank: this.rank,
      ...about,
      begin: begin - this.began,
      end: end - this.began,
    });
  }

  /** A recorder that counts from now. */
  static readonly start = (
    rank: number,
    publish: (interval: Interval) => Effect.Effect<void>,
  ): Effect.Effect<Recorder> =>
    Effect.map(milliseconds, (began) => new Recorder(rank, began, publish));
}
