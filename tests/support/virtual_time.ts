/**
 * Tests in virtual time.
 *
 * @module
 */
import { Effect, Fiber } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";

/** Runs an effect on a clock of its own, which runs for an hour; what has not ended then stands still. */
export const inVirtualTime = <A, E>(effect: Effect.Effect<A, E>): Promise<A> =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true });
    // Second by second: what happens without a clock happens meanwhile.
    for (let i = 0; i < 3600 && fiber.pollUnsafe() === undefined; i++) {
      yield* TestClock.adjust("1 second");
    }
    assert.ok(fiber.pollUnsafe() !== undefined, "it stands still");
    return yield* Fiber.join(fiber);
  }).pipe(Effect.provide(TestClock.layer()), Effect.runPromise);
