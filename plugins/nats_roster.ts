/**
 * Who is who to a NATS server that lets each member speak, listen and answer only under its own name. The name is that
 * of a member's certificate; without certificates all nodes have the same.
 *
 * @module
 */
import type { Slot } from "../runtime/link.ts";

/** The name of every node that has no certificate. */
export const anyone = "any";
/** The name of every driver. */
export const driverName = "driver";

/** The name of a member, and of those that hold ranks. */
export interface Roster {
  readonly self: string;
  /** By rank; changes when ranks move. */
  ranks: ReadonlyArray<string>;
}

/** What a member knows before any rank is given. */
export const rosterOf = (self: string = anyone): Roster => ({ self, ranks: [] });

/** The name of whoever has a slot, for the one who has `self`. */
export const nameOf = (roster: Roster, slot: Slot, self: Slot): string => {
  if (slot === "driver") return driverName;
  return slot === self ? roster.self : roster.ranks[slot] ?? roster.self;
};
