/** Links of a chosen speed are links, and have that speed. */
import assert from "node:assert/strict";
import { Clock, Context, Effect, Layer } from "effect";
import { throttled } from "../../bench/throttled_links.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { Links, type Slot } from "../../runtime/link.ts";
import { testLinks } from "../contract/link.ts";
import { inVirtualTime } from "../support/virtual_time.ts";

testLinks("throttled memory", ({ window, deadline }) =>
  Effect.gen(function* () {
    const free = memoryLinks({ windowFrames: window.frames, deadline });
    const layer = throttled(1e12).pipe(Layer.provide(free));
    const links = Context.get(yield* Layer.build(layer), Links);
    return () => links;
  }));

/** Milliseconds that ten frames of 1,000 bytes take from `self` to `peer` at 200,000 bytes a second. */
const milliseconds = (self: Slot, peer: Slot) =>
  inVirtualTime(
    Effect.gen(function* () {
      const links = yield* Links;
      const [there, here] = yield* Effect.all([
        links.open({ run: "run", self, peer }),
        links.open({ run: "run", self: peer, peer: self }),
      ], { concurrency: "unbounded" });
      const began = yield* Clock.currentTimeMillis;
      for (let n = 0; n < 10; n++) yield* there!.send(new Uint8Array(1000));
      for (let n = 0; n < 10; n++) yield* here!.receive;
      return (yield* Clock.currentTimeMillis) - began;
    }).pipe(
      Effect.scoped,
      Effect.provide(throttled(200_000).pipe(Layer.provide(memoryLinks()))),
    ),
  );

Deno.test("a throttled link takes the time of its bytes between ranks", async () => {
  assert.equal(await milliseconds(0, 1), 50);
});

Deno.test("a throttled link leaves the driver's frames alone", async () => {
  assert.equal(await milliseconds("driver", 1), 0);
  assert.equal(await milliseconds(1, "driver"), 0);
});
