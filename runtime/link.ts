/**
 * The link port: how frames move between two members of a run. A link keeps their order and delivers each exactly
 * once, makes the sender wait while the receiver is behind, holds a bounded number of bytes, or fails with a typed
 * error. It knows nothing of what the frames mean.
 *
 * @module
 */
import { Context, type Effect, type Scope } from "effect";
import type { LinkError } from "./errors.ts";

/** A member of a run: the driver or a rank. */
export type Slot = "driver" | number;

/** "the driver" or "rank 3", for sentences. */
export const slotName = (slot: Slot): string => slot === "driver" ? "the driver" : `rank ${slot}`;

/** The two ends of a link, seen from `self`. */
export interface Ends {
  readonly run: string;
  readonly self: Slot;
  readonly peer: Slot;
  /** Version of the run's membership, 0 by default; nothing of another one is ever delivered. */
  readonly epoch?: number;
  /** A link of its own between the same two members, so that neither order nor back-pressure of one binds the other. */
  readonly lane?: "gradients" | "events" | "checkpoints" | "answers" | "parts";
}

/** One end of an open link; both directions are independent. */
export interface Link {
  /** Returns when the link has taken the frame, which it may only do while its window has room. */
  readonly send: (frame: Uint8Array) => Effect.Effect<void, LinkError>;
  /** The next frame in order. Taking it is what makes room for another. */
  readonly receive: Effect.Effect<Uint8Array, LinkError>;
  /** Returns when the peer has taken every frame sent so far. */
  readonly drain: Effect.Effect<void, LinkError>;
  /** Never returns while the link is sound; fails as soon as it is not, also when nobody sends or receives. */
  readonly broken: Effect.Effect<never, LinkError>;
}

/** Opens links. */
export class Links extends Context.Service<Links, {
  /** `memory`, `nats`. */
  readonly name: string;
  /** The largest frame in bytes that a link carries. */
  readonly maxFrame: number;
  /**
   * Opens this end and returns when the peer has opened the other. Closing the scope tells the peer why: a
   * success says that all is done, a failure carries its sentence.
   */
  readonly open: (ends: Ends) => Effect.Effect<Link, LinkError, Scope.Scope>;
  /** How often links had to send something again, or refused what came, by reason. */
  readonly counts: () => Readonly<Record<string, number>>;
}>()("annulus/runtime/Links") {}
