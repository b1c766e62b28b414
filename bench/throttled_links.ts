/**
 * Links of a chosen speed: what ranks send to each other takes the time that a wire of so many bytes a second would
 * take. The driver's links stay as they are, because shards reach their ranks before a ring turns.
 *
 * @module
 */
import { Clock, Effect, Layer, Semaphore } from "effect";
import { Links } from "../runtime/link.ts";

/** Passes frames on no faster than `bytesPerSecond`, each direction of a link for itself. */
export const throttled = (bytesPerSecond: number): Layer.Layer<Links, never, Links> =>
  Layer.effect(
    Links,
    Effect.map(Links, (links) => ({
      ...links,
      open: (ends) => {
        if (ends.self === "driver" || ends.peer === "driver") return links.open(ends);
        return Effect.gen(function* () {
          const link = yield* links.open(ends);
          const wire = yield* Semaphore.make(1);
          // A schedule instead of a pause a frame: timers fire late and know no less than a millisecond, which would
          // add up.
          let freeAt = 0;
          const send = (frame: Uint8Array) =>
            Effect.gen(function* () {
              const now = yield* Clock.currentTimeMillis;
              freeAt = Math.max(now, freeAt) + 1000 * frame.length / bytesPerSecond;
              if (freeAt - now >= 1) yield* Effect.sleep(freeAt - now);
              yield* link.send(frame);
            });
          return { ...link, send: (frame) => Semaphore.withPermit(wire, send(frame)) };
        });
      },
    })),
  );
