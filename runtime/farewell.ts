/**
 * What one end of a link tells the other when it goes.
 *
 * @module
 */
import { Cause, Exit } from "effect";
import { LinkClosed } from "./errors.ts";

/** Why a member left a link. */
export interface Farewell {
  /** All went well: what was sent stands, and nothing more will come. */
  readonly done: boolean;
  readonly reason: string;
}

/** Longer sentences are cut: a reason travels in one message. */
const longest = 1000;

/** The reason that the end of a scope gives. */
export const farewellOf = (exit: Exit.Exit<unknown, unknown>): Farewell => {
  if (Exit.isSuccess(exit)) return { done: true, reason: "the peer is done" };
  if (Cause.hasInterruptsOnly(exit.cause)) {
    return { done: false, reason: "the run was interrupted" };
  }
  const error = Cause.squash(exit.cause);
  // A member that left because another did passes the first cause on; whole sentences would nest around the ring.
  const sentence = error instanceof LinkClosed
    ? `${error.peer} left: ${error.reason}`
    : error instanceof Error
    ? error.message
    : String(error);
  return { done: false, reason: sentence.slice(0, longest) };
};
