import { Effect, Exit, Fiber, Scope } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";
import { deviceInWorker } from "../../runtime/device_worker.ts";
import type { DeviceFailed } from "../../runtime/errors.ts";
import type { KeyValues, Queries } from "../../runtime/kernel.ts";
import { ProgramWriter } from "../../runtime/program.ts";
import { bandOf, full } from "../support/masks.ts";

/** What the device of `support/odd_worker.ts` shall do. */
const open = (options: unknown, closing?: number) =>
  deviceInWorker({
    name: "odd",
    url: new URL("../support/odd_worker.ts", import.meta.url),
    options,
    ...(closing === undefined ? {} : { closing }),
  });

const band = bandOf(full);
const shape = { batch: 1, heads: 1, kvHeads: 1, headDim: 4, scale: 1, dtype: "f32" } as const;
const queriesIn = (bytes: Uint8Array): Queries => ({ ...shape, tokens: bytes.length / 16, bytes });
const blockIn = (bytes: Uint8Array): KeyValues => ({
  tokens: bytes.length / 32,
  dtype: "f32",
  bytes,
});
const queries = queriesIn(new Uint8Array(16));
const block = blockIn(new Uint8Array(32));

const it = <A, E>(name: string, test: Effect.Effect<A, E, Scope.Scope>) =>
  Deno.test(name, () => test.pipe(Effect.scoped, Effect.asVoid, Effect.runPromise));

const assertFailed = (error: DeviceFailed, sentence: RegExp) => {
  assert.equal(error._tag, "DeviceFailed");
  assert.match(error.message, sentence);
};

it(
  "deviceInWorker() gives what the kernel says of itself, and how long it was busy",
  Effect.gen(function* () {
    const device = yield* open("works");
    assert.equal(device.info.backend, "odd");
    const accumulator = yield* device.begin(queries);
    assert.ok((yield* accumulator.absorb(block, [], band)) >= 0);
    const { o, lse } = yield* accumulator.finish;
    assert.deepEqual([o.length, lse.length], [4, 1]);
  }),
);

it(
  "deviceInWorker() repeats what a kernel needs that cannot run here",
  Effect.gen(function* () {
    const error = yield* Effect.flip(open("unavailable"));
    assert.equal(error._tag, "DeviceUnavailable");
    assert.equal(error.message, 'Cannot use device "odd": it needs a green lamp: found a red one');
  }),
);

it(
  "deviceInWorker() fails when the kernel throws as it opens",
  Effect.gen(function* () {
    const error = yield* Effect.flip(open("throws in open"));
    assert.equal(error._tag, "DeviceUnavailable");
    assert.match(error.message, /thrown in open/);
  }),
);

for (
  const [what, url, found] of [
    ["throws as it loads", "data:text/javascript,throw new Error('thrown at load')", /at load/],
    ["does not exist", "file:///no/such/module.js", /its worker crashed/],
  ] as const
) {
  it(
    `deviceInWorker() fails when the Worker's module ${what}`,
    Effect.gen(function* () {
      const error = yield* Effect.flip(deviceInWorker({ name: "odd", url: new URL(url) }));
      assert.equal(error._tag, "DeviceUnavailable");
      assert.match(error.message, found);
    }),
  );
}

it(
  "deviceInWorker() does not wait forever for a module that never serves",
  Effect.gen(function* () {
    const url = new URL("data:text/javascript,");
    const fiber = yield* Effect.forkChild(Effect.flip(deviceInWorker({ name: "odd", url })), {
      startImmediately: true,
    });
    yield* TestClock.adjust("60 seconds");
    const error = yield* Fiber.join(fiber);
    assert.equal(error._tag, "DeviceUnavailable");
    assert.match(error.message, /no answer within 60 seconds/);
  }).pipe(Effect.provide(TestClock.layer())),
);

it(
  "a device whose kernel throws in begin goes on serving",
  Effect.gen(function* () {
    const device = yield* open("throws in the first begin");
    assertFailed(yield* Effect.flip(device.begin(queries)), /begin.*thrown in begin/);
    yield* device.begin(queries);
  }),
);

it(
  "an accumulator whose absorb threw is never finished, as half a block may be in it",
  Effect.gen(function* () {
    const device = yield* open("throws in the first absorb");
    const accumulator = yield* device.begin(queries);
    const error = yield* Effect.flip(accumulator.absorb(block, [], band));
    assert.equal(
      error.message,
      'Cannot absorb a block of 1 tokens on device "odd": thrown in absorb',
    );
    assertFailed(yield* Effect.flip(accumulator.absorb(block, [], band)), /added in part/);
    assertFailed(yield* Effect.flip(accumulator.finish), /added in part/);
    const other = yield* device.begin(queries);
    yield* other.absorb(block, [], band);
    yield* other.finish;
  }),
);

it(
  "an accumulator whose absorb was interrupted is never finished",
  Effect.gen(function* () {
    const device = yield* open("works");
    const accumulator = yield* device.begin(queries);
    const fiber = yield* Effect.forkChild(accumulator.absorb(block, [], band), {
      startImmediately: true,
    });
    yield* Fiber.interrupt(fiber);
    assertFailed(yield* Effect.flip(accumulator.finish), /added in part/);
  }),
);

for (const end of ["throws later", "rejects later", "closes itself", "exits"]) {
  it(
    `every request fails when the Worker ${end}`,
    Effect.gen(function* () {
      const device = yield* open(end);
      const accumulator = yield* device.begin(queries);
      const both = yield* Effect.all([
        Effect.flip(accumulator.absorb(block, [], band)),
        Effect.flip(accumulator.finish),
      ], { concurrency: "unbounded" });
      for (const error of both) assertFailed(error, /its worker/);
      assertFailed(yield* Effect.flip(device.begin(queries)), /its worker/);
    }),
  );
}

it(
  "a reply that cannot be sent is a failure of its request",
  Effect.gen(function* () {
    const device = yield* open("finishes with a function");
    const accumulator = yield* device.begin(queries);
    assertFailed(yield* Effect.flip(accumulator.finish), /could not be cloned/);
  }),
);

it(
  "a request that cannot be sent is a failure of its own",
  Effect.gen(function* () {
    const device = yield* open("works");
    const odd = { ...queries, extra: () => {} };
    assertFailed(yield* Effect.flip(device.begin(odd)), /could not be sent/);
    yield* device.begin(queries);
  }),
);

it(
  "shared memory crosses without a copy, other memory as one",
  Effect.gen(function* () {
    const device = yield* open("writes into what it gets");
    const sharedBytes = () => new Uint8Array(new SharedArrayBuffer(48), 16, 32);
    const ownBytes = () => new Uint8Array(new ArrayBuffer(48), 16, 32);
    for (const [make, written] of [[sharedBytes, 77], [ownBytes, 0]] as const) {
      const [q, kv] = [make(), make()];
      const accumulator = yield* device.begin(queriesIn(q));
      yield* accumulator.absorb(blockIn(kv), [], band);
      assert.deepEqual([q[0], kv[0], q.length, kv.length], [written, written, 32, 32]);
    }
  }),
);

it(
  "two blocks at a time are with the kernel, so that one is queued while one is computed",
  Effect.gen(function* () {
    const device = yield* open("is slow and notes who overlaps");
    const accumulator = yield* device.begin(queries);
    const absorb = accumulator.absorb(block, [], band);
    yield* Effect.all([absorb, absorb, absorb, absorb], { concurrency: "unbounded" });
    // o[0]: the most absorbs at once. o[1]: how many there were.
    assert.deepEqual([...(yield* accumulator.finish).o.subarray(0, 2)], [2, 4]);
  }),
);

it(
  "an accumulator is closed with its scope, also when begin fails or is interrupted",
  Effect.gen(function* () {
    const device = yield* open("counts what is open");
    const openNow = device.begin(queries).pipe(
      Effect.andThen((accumulator) => accumulator.finish),
      Effect.map(({ o }) => o[0]),
      Effect.scoped,
    );
    assert.equal(yield* openNow, 1);
    assert.equal(yield* openNow, 1);
    const scope = yield* Scope.make();
    const fiber = yield* device.begin(queries).pipe(
      Scope.provide(scope),
      Effect.forkChild({ startImmediately: true }),
    );
    yield* Fiber.interrupt(fiber);
    yield* Scope.close(scope, Exit.void);
    assert.equal(yield* openNow, 1);
  }),
);

it(
  "a closed device fails what waits for it and what comes later",
  Effect.gen(function* () {
    const scope = yield* Scope.make();
    const device = yield* Scope.provide(open("never answers an absorb"), scope);
    const accumulator = yield* device.begin(queries);
    const fiber = yield* Effect.forkChild(Effect.flip(accumulator.absorb(block, [], band)), {
      startImmediately: true,
    });
    yield* Scope.close(scope, Exit.void);
    assertFailed(yield* Fiber.join(fiber), /the device was closed/);
    assertFailed(yield* Effect.flip(device.begin(queries)), /the device was closed/);
  }),
);

it(
  "an accumulator is of no use after its scope",
  Effect.gen(function* () {
    const device = yield* open("works");
    const accumulator = yield* Effect.scoped(device.begin(queries));
    assertFailed(yield* Effect.flip(accumulator.finish), /closed before/);
  }),
);

it(
  "a result is given once",
  Effect.gen(function* () {
    const device = yield* open("works");
    const accumulator = yield* device.begin(queries);
    yield* accumulator.finish;
    assertFailed(yield* Effect.flip(accumulator.finish), /it was given before/);
  }),
);

it(
  "the Worker is stopped with the device's scope, and when it crashes",
  Effect.gen(function* () {
    let stopped = 0;
    const Original = globalThis.Worker;
    globalThis.Worker = class extends Original {
      override terminate() {
        stopped++;
        super.terminate();
      }
    };
    yield* Effect.addFinalizer(() => Effect.sync(() => void (globalThis.Worker = Original)));
    yield* Effect.scoped(open("works"));
    assert.equal(stopped, 1);
    const device = yield* open("throws later");
    const accumulator = yield* device.begin(queries);
    yield* Effect.flip(accumulator.absorb(block, [], band));
    assert.equal(stopped, 2);
  }),
);

for (const throws of [false, true]) {
  const but = throws ? ", whatever else is not" : "";
  Deno.test(`a kernel that wants to be closed is, before its Worker ends${but}`, async () => {
    const says = crypto.randomUUID();
    const channel = new BroadcastChannel(says);
    const heard = new Promise((resolve) => channel.onmessage = ({ data }) => resolve(data));
    await Effect.gen(function* () {
      const device = yield* open({ says, throws }, 60_000);
      // Its accumulator outlives it.
      yield* device.begin(queries).pipe(Scope.provide(yield* Scope.make()));
    }).pipe(Effect.scoped, Effect.runPromise);
    assert.equal(await heard, throws ? 1 : 0);
    channel.close();
  });
}

for (
  const [what, url] of [
    ["does not exist", new URL("file:///no/such/module.js")],
    ["crashes", new URL("../support/odd_worker.ts", import.meta.url)],
  ] as const
) {
  it(
    `a Worker that has time to close and ${what} is told as it is`,
    Effect.gen(function* () {
      const error = yield* Effect.flip(Effect.scoped(Effect.gen(function* () {
        const spec = { name: "odd", url, options: "throws later", closing: 60_000 };
        const device = yield* deviceInWorker(spec);
        const accumulator = yield* device.begin(queries);
        yield* accumulator.absorb(block, [], band);
      })));
      assert.match(error.message, /its worker crashed/);
    }),
  );
}

it(
  "a kernel may be a class, with all that it has",
  Effect.gen(function* () {
    const device = yield* open("is a class");
    const programs = yield* device.programs!([{ name: "w", rows: 1, columns: 1, dtype: "f32" }]);
    assert.deepEqual(yield* programs.run(new ProgramWriter().program), [Float32Array.of(42)]);
  }),
);

for (
  const [what, options] of [["closes", "never closes"], ["answers", "never answers an absorb"]]
) {
  it(
    `a kernel that never ${what} has its time and no more, also where that ends by an interruption`,
    Effect.gen(function* () {
      const scope = yield* Scope.make();
      const device = yield* open(options, 20).pipe(Scope.provide(scope));
      const accumulator = yield* device.begin(queries).pipe(Scope.provide(scope));
      const fiber = yield* accumulator.absorb(block, [], band).pipe(
        Effect.onExit(() => Scope.close(scope, Exit.void)),
        Effect.forkChild({ startImmediately: true }),
      );
      yield* Fiber.interrupt(fiber);
      const error = yield* Effect.flip(Effect.scoped(device.begin(queries)));
      assert.match(error.message, /the device was closed/);
    }),
  );
}
