/** Who measures with the same lock takes turns. */
import assert from "node:assert/strict";
import { Effect } from "effect";
import { exclusivelyWith } from "../../bench/lock.ts";

const turns = (path: string | undefined) => {
  const events: Array<string> = [];
  const work = (name: string) =>
    exclusivelyWith(path)(Effect.gen(function* () {
      events.push(`${name} begins`);
      for (let turn = 0; turn < 10; turn++) yield* Effect.yieldNow;
      events.push(`${name} ends`);
    }));
  return Effect.map(
    Effect.all([work("one"), work("other")], { concurrency: "unbounded" }),
    () => events.map((event) => event.split(" ")[1]),
  );
};

Deno.test("work with the same lock never overlaps, without one it may", async () => {
  const path = await Deno.makeTempFile();
  try {
    assert.deepEqual(await Effect.runPromise(turns(path)), ["begins", "ends", "begins", "ends"]);
    const free = await Effect.runPromise(turns(undefined));
    assert.deepEqual(free, ["begins", "begins", "ends", "ends"]);
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("what is acquired under the lock outlives it", async () => {
  const path = await Deno.makeTempFile();
  const events: Array<string> = [];
  try {
    const resource = Effect.acquireRelease(
      Effect.sync(() => events.push("acquired")),
      () => Effect.sync(() => void events.push("released")),
    );
    await Effect.runPromise(Effect.scoped(Effect.andThen(
      exclusivelyWith(path)(resource),
      Effect.sync(() => events.push("used")),
    )));
    assert.deepEqual(events, ["acquired", "used", "released"]);
  } finally {
    await Deno.remove(path);
  }
});
