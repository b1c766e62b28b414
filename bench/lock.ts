/**
 * Taking turns with others who measure on this machine.
 *
 * @module
 */
import { Effect } from "effect";

/** Runs work while this process alone holds the lock of a file; without a file, just runs it. */
export const exclusivelyWith =
  (path: string | undefined) => <A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    path === undefined ? work : Effect.acquireUseRelease(
      Effect.promise(async () => {
        const file = await Deno.open(path, { create: true, write: true });
        await file.lock(true);
        return file;
      }),
      () => work,
      (file) => Effect.sync(() => file.close()),
    );
