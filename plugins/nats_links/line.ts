/**
 * The line port: what links need of a messaging system, which may lose, double, reorder, damage and delay whatever it
 * carries, and may be away for a while.
 *
 * @module
 */
import type { Effect } from "effect";
import type { ServerUnavailable } from "../../runtime/errors.ts";

/** Hears of what happens to a line. */
export interface LineWatcher {
  /** The line is away: nothing is heard or said. */
  readonly away?: () => void;
  /** The line was away and is there again; what was on its way may be lost. */
  readonly back?: () => void;
  /** A beat of this process came back over the line. */
  readonly pulse?: () => void;
  /** Something is not allowed: about this subject, or about all of them. */
  readonly refused?: (sentence: string, subject: string | undefined) => void;
  /** The line stays away: it is given up. */
  readonly gone?: (sentence: string) => void;
}

/** A way to publish and to subscribe. */
export interface Line {
  /** The largest message in bytes. */
  readonly maxPayload: number;
  /** What is published while the line is away is lost. An answer is to be published on `reply`. */
  readonly publish: (subject: string, bytes: Uint8Array, reply?: string) => void;
  /**
   * `hear` gets a view of memory that is used again; returns what ends the subscription. The last word of a subject may be
   * `*`, which stands for any.
   */
  readonly subscribe: (
    subject: string,
    hear: (bytes: Uint8Array, reply: string | undefined, subject: string) => void,
  ) => () => void;
  /** Fails when the line stays away for longer than anybody waits. */
  readonly lost: Effect.Effect<never, ServerUnavailable>;
  /** Returns what ends the watching. */
  readonly watch: (watcher: LineWatcher) => () => void;
  /** Returns when what was published has reached the server, or cannot any more. */
  readonly flush: () => Promise<void>;
}

/** The two lines of a member: bulk, and what must not wait behind it. */
export interface Lines {
  readonly bulk: Line;
  readonly control: Line;
}
