/**
 * What the queries of a rank have gathered: in an accumulator on the device, and what was taken out of it before, so
 * that it could be kept elsewhere. What is added after that begins anew on the device and is merged with the rest when
 * it is taken in turn.
 *
 * @module
 */
import { Effect, Exit, Scope } from "effect";
import type { Accumulator, Device } from "./device.ts";
import type { DeviceFailed } from "./errors.ts";
import type { Attended, Queries } from "./kernel.ts";
import { merge } from "./merge.ts";

/** The sum over all keys that the queries of one rank have seen. */
export interface Gathering {
  /** How many blocks were taken off the device. */
  readonly taken: () => number;
  /** The accumulator to which blocks are added. */
  readonly on: Effect.Effect<Accumulator, DeviceFailed>;
  /** All `merged` blocks, off the device, whose memory is free then. What is given is not to be changed. */
  readonly take: (merged: number) => Effect.Effect<Attended, DeviceFailed>;
}

/**
 * Nothing gathered yet, or what was gathered of the first so many blocks.
 *
 * @param scope Frees what the device holds.
 */
export const gatheringOf = (
  device: Device["Service"],
  queries: Queries,
  scope: Scope.Scope,
  before?: { readonly attended: Attended; readonly merged: number },
): Gathering => {
  let taken = before;
  let open: { readonly accumulator: Accumulator; readonly memory: Scope.Closeable } | undefined;
  const begin = Effect.gen(function* () {
    if (open !== undefined) return open;
    const memory = yield* Scope.fork(scope);
    const accumulator = yield* Scope.provide(device.begin(queries), memory);
    return open = { accumulator, memory };
  });
  return {
    taken: () => taken?.merged ?? 0,
    on: Effect.map(begin, ({ accumulator }) => accumulator),
    take: (merged) =>
      Effect.gen(function* () {
        const { accumulator, memory } = yield* begin;
        const attended = yield* accumulator.finish;
        yield* Scope.close(memory, Exit.void);
        open = undefined;
        if (taken !== undefined) merge(attended, taken.attended, queries);
        taken = { attended, merged };
        return attended;
      }).pipe(Effect.uninterruptible),
  };
};
