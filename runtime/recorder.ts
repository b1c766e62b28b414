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

/** Something that goes on, and since when in milliseconds of the run. */
export interface Doing extends About {
  readonly since: number;
}

const milliseconds = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6);

/** Hands every interval to `publish` as soon as it ended, and knows what has not ended yet. */
export class Recorder {
  /** Work that is going on, and when the last of it ended. */
  #working = 0;
  #idleSince = 0;
  readonly #doing = new Set<Doing>();

  constructor(
    readonly rank: number,
    /** Milliseconds of this process's clock at which the run began. */
    readonly began: number,
    readonly publish: (interval: Interval) => Effect.Effect<void>,
  ) {}

  /** Milliseconds since the run began. */
  readonly now: Effect.Effect<number> = Effect.map(milliseconds, (now) => now - this.began);

  /** What goes on now, and since when in milliseconds of the run. */
  get doing(): ReadonlyArray<Doing> {
    return [...this.#doing];
  }

  /** Counts as going on while `effect` runs. */
  #during<A, E, R>(about: About, begin: number, effect: Effect.Effect<A, E, R>) {
    return Effect.suspend(() => {
      const doing = { ...about, since: begin - this.began };
      this.#doing.add(doing);
      return Effect.ensuring(effect, Effect.sync(() => void this.#doing.delete(doing)));
    });
  }

  /** Records how long `effect` took, if it succeeds. */
  timed<A, E, R>(about: About, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.flatMap(
      milliseconds,
      (begin) =>
        Effect.tap(
          this.#during(about, begin, effect),
          () => Effect.flatMap(milliseconds, (end) => this.#write(about, begin, end)),
        ),
    );
  }

  /** Records work that lasted as many milliseconds as it says when it ends. */
  lasted<A extends { readonly busy: number }, E, R>(
    about: About,
    effect: Effect.Effect<A, E, R>,
  ): Effect.Effect<A, E, R> {
    return Effect.flatMap(milliseconds, (asked) => {
      this.#working++;
      return Effect.tap(
        this.#during(about, asked, effect),
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
          this.#during(about, asked, effect),
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
    return Effect.flatMap(milliseconds, (asked) => {
      let begin: number | undefined;
      const mark = Effect.map(milliseconds, (now) => void (begin ??= now));
      return Effect.tap(
        this.#during(about, asked, effect(mark)),
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
