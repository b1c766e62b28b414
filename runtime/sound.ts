/**
 * Work that needs links, and ends when one of them does.
 *
 * @module
 */
import { Effect } from "effect";
import type { LinkError } from "./errors.ts";
import type { Link } from "./link.ts";

/** Fails as soon as one of the links does, whatever `effect` is waiting for. */
export const whileSound = <A, E, R>(links: ReadonlyArray<Link>, effect: Effect.Effect<A, E, R>) =>
  Effect.raceAllFirst<Effect.Effect<A, E | LinkError, R>>([
    effect,
    ...links.map((link) => link.broken),
  ]);
