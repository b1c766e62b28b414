/**
 * Taking turns with others who measure on this machine.
 *
 * @module
 */
import { Effect, Scope } from "effect";

/** The file, locked for this process alone. */
const locked = (path: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const file = await Deno.open(path, { create: true, write: true });
      await file.lock(true);
      return file;
    }),
    (file) => Effect.sync(() => file.close()),
    { interruptible: true }, // the others may take their time
  );

/**
 * Runs work while this process alone holds the lock of a file; without a file, just runs it. What the work acquires
 * outlives the lock: its scope is the caller's.
 */
export const exclusivelyWith =
  (path: string | undefined) => <A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    path === undefined ? work : Effect.acquireUseRelease(
      Scope.make(),
      (scope) => Effect.andThen(Scope.provide(locked(path), scope), work),
      Scope.close,
    );
