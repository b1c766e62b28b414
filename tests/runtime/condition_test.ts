import { Effect, Fiber } from "effect";
import assert from "node:assert/strict";
import { Condition } from "../../runtime/condition.ts";

const it = (name: string, test: Effect.Effect<void>) =>
  Deno.test(name, () => Effect.runPromise(test));

const start = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.forkChild(effect, { startImmediately: true });

it(
  "Condition.until() gives each item to one waiter, and none to an interrupted one",
  Effect.gen(function* () {
    const condition = new Condition();
    const items: Array<number> = [];
    const take = condition.until(() => {
      const item = items.shift();
      return item === undefined ? undefined : Effect.succeed(item);
    });
    const interrupted = yield* start(take);
    const [first, second] = [yield* start(take), yield* start(take)];
    yield* Fiber.interrupt(interrupted);
    items.push(1);
    condition.changed();
    assert.equal(yield* Fiber.join(first), 1);
    assert.equal(second.pollUnsafe(), undefined);
    items.push(2, 3);
    condition.changed();
    assert.equal(yield* Fiber.join(second), 2);
    assert.equal(yield* take, 3);
  }),
);

it(
  "Condition.until() lets what it finds fail",
  Effect.gen(function* () {
    const condition = new Condition();
    let broken = false;
    const waiting = yield* start(
      Effect.flip(condition.until(() => broken ? Effect.fail("broken") : undefined)),
    );
    condition.changed();
    assert.equal(waiting.pollUnsafe(), undefined);
    broken = true;
    condition.changed();
    assert.equal(yield* Fiber.join(waiting), "broken");
  }),
);
