/**
 * The contract of a link: what any `Links` must do, whatever carries the frames. A link's test is one call of
 * `testLinks`.
 *
 * @module
 */
import { type Duration, Effect, Exit, Fiber, Scope } from "effect";
import { TestClock } from "effect/testing";
import assert from "node:assert/strict";
import { LinkClosed, type LinkError, LinkFailed } from "../../runtime/errors.ts";
import type { Link, Links, Slot } from "../../runtime/link.ts";
import { uniform } from "../support/random.ts";

/** What a case asks of the links it is run on. */
export interface LinkSettings {
  /** The link may hold this many frames of this many bytes, per direction, and no more. */
  readonly window: { readonly frames: number; readonly frameBytes: number };
  /** How long `open` waits for the other end. */
  readonly deadline: Duration.Input;
}

/** Gives every member of a run its own `Links`; all of them reach each other. */
export type MakeLinks = (
  settings: LinkSettings,
) => Effect.Effect<(self: Slot) => Links["Service"], unknown, Scope.Scope>;

/** One promise of the contract; fails by `assert`. */
export interface LinkCase {
  readonly name: string;
  readonly run: (make: MakeLinks) => Effect.Effect<void, unknown, Scope.Scope>;
}

const usual: LinkSettings = { window: { frames: 16, frameBytes: 4096 }, deadline: "10 seconds" };

/** One end of a link, in a scope of its own. */
interface OpenEnd extends Link {
  readonly close: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void>;
}

const openEnd = Effect.fnUntraced(function* (
  links: Links["Service"],
  run: string,
  self: Slot,
  peer: Slot,
) {
  const outer = yield* Effect.scope;
  const scope = yield* Scope.fork(outer);
  const link = yield* Scope.provide(links.open({ run, self, peer }), scope);
  const end: OpenEnd = { ...link, close: (exit) => Scope.close(scope, exit) };
  return end;
});

const openPair = Effect.fnUntraced(function* (
  members: (self: Slot) => Links["Service"],
  run = "run",
  one: Slot = 0,
  other: Slot = 1,
) {
  return yield* Effect.all([
    openEnd(members(one), run, one, other),
    openEnd(members(other), run, other, one),
  ], { concurrency: "unbounded" });
});

/** Random bytes that frames are cut from. */
const noise = (() => {
  const next = uniform(1);
  return Uint8Array.from({ length: 1 << 20 }, () => 256 * next());
})();

/** A frame of up to a mebibyte whose every byte follows from the seed. */
const frameOf = (seed: number, bytes: number): Uint8Array => {
  const from = (seed * 997) % (noise.length - bytes);
  return noise.slice(from, from + bytes);
};

const assertFrame = (found: Uint8Array, needed: Uint8Array, which: string) => {
  assert.equal(found.length, needed.length, `${which}: length`);
  for (let i = 0; i < needed.length; i++) {
    if (found[i] !== needed[i]) assert.fail(`${which}: byte ${i} is ${found[i]}, not ${needed[i]}`);
  }
};

/** Sends frames of random sizes, the same for the same seed. */
const sendRandom = (link: Link, seed: number, count: number, largest: number) =>
  Effect.suspend(() => {
    const next = uniform(seed);
    return Effect.forEach(
      Array.from({ length: count }, (_, i) => i),
      (i) => link.send(frameOf(seed + i, 1 + Math.floor(largest * next()))),
      { discard: true },
    );
  });

/** Receives what `sendRandom` sent. */
const receiveRandom = (link: Link, seed: number, count: number, largest: number) =>
  Effect.suspend(() => {
    const next = uniform(seed);
    return Effect.forEach(
      Array.from({ length: count }, (_, i) => i),
      (i) =>
        Effect.map(
          link.receive,
          (frame) =>
            assertFrame(frame, frameOf(seed + i, 1 + Math.floor(largest * next())), `frame ${i}`),
        ),
      { discard: true },
    );
  });

/** After this, whatever either end did before has reached the other. */
const roundTrips = (from: Link, to: Link) =>
  Effect.andThen(from.send(Uint8Array.of(0)), to.receive).pipe(Effect.repeat({ times: 3 }));

const startNow = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.forkScoped(effect, { startImmediately: true });

const assertClosed = (error: LinkError, reason: RegExp) => {
  assert.ok(error instanceof LinkClosed, `LinkClosed instead of: ${error.message}`);
  assert.match(error.reason, reason);
};

const all = { concurrency: "unbounded", discard: true } as const;

/** Every promise of the contract. */
export const linkCases: ReadonlyArray<LinkCase> = [
  {
    name: "keeps the order and content of thousands of frames, both ways at once",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      yield* Effect.all([
        sendRandom(a, 1, 3000, 4096),
        receiveRandom(b, 1, 3000, 4096),
        sendRandom(b, 9000, 3000, 512),
        receiveRandom(a, 9000, 3000, 512),
      ], all);
    }),
  },
  {
    name: "carries frames of no byte, of one, and of maxFrame bytes",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const { maxFrame } = members(0);
      assert.ok(maxFrame >= 1024, "a link carries at least a kibibyte");
      const [a, b] = yield* openPair(members);
      for (const bytes of [1, maxFrame, 0, maxFrame - 1, 1, maxFrame]) {
        const frame = frameOf(bytes, bytes);
        yield* Effect.all([
          a.send(frame),
          Effect.map(b.receive, (found) => assertFrame(found, frame, `${bytes} bytes`)),
        ], all);
      }
    }),
  },
  {
    name: "refuses a frame beyond maxFrame and stays usable",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const [a, b] = yield* openPair(members);
      const error = yield* Effect.flip(a.send(new Uint8Array(members(0).maxFrame + 1)));
      assert.ok(error instanceof LinkFailed);
      assert.match(error.message, new RegExp(`${members(0).maxFrame}.*${members(0).maxFrame + 1}`));
      yield* a.send(Uint8Array.of(7));
      assertFrame(yield* b.receive, Uint8Array.of(7), "the next frame");
    }),
  },
  {
    name: "leaves a sent frame to the sender and a received one to the receiver",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const [a, b] = yield* openPair(members);
      const frame = frameOf(3, 100);
      yield* a.send(frame);
      frame.fill(0);
      const received = yield* b.receive;
      assertFrame(received, frameOf(3, 100), "after the sender changed its own");
      received.fill(1);
      assertFrame(frame, new Uint8Array(100), "after the receiver changed its own");

      // Frames that came together must not share memory, either.
      yield* a.send(frameOf(4, 100));
      yield* a.send(frameOf(5, 100));
      const [first, second] = [yield* b.receive, yield* b.receive];
      new Uint8Array(first.buffer).fill(1);
      assertFrame(second, frameOf(5, 100), "after its neighbour was changed");
      const { maxFrame } = members(0);
      const sending = yield* startNow(
        Effect.forEach([6, 7], (seed) => a.send(frameOf(seed, maxFrame))),
      );
      new Uint8Array((yield* b.receive).buffer).fill(1);
      assertFrame(yield* b.receive, frameOf(7, maxFrame), "after a large neighbour was changed");
      yield* Fiber.join(sending);
    }),
  },
  {
    name: "makes the sender wait while the receiver takes nothing, and go on as it takes",
    run: Effect.fnUntraced(function* (make) {
      const window = { frames: 4, frameBytes: 2000 };
      const [a, b] = yield* openPair(yield* make({ ...usual, window }));
      let [sent, taken] = [0, 0];
      const sending = yield* startNow(
        Effect.forEach(
          Array.from({ length: 100 }, (_, i) => i),
          (i) => Effect.tap(a.send(frameOf(i, 2000)), () => Effect.sync(() => sent++)),
          { discard: true },
        ),
      );
      for (; taken < 100; taken++) {
        if (taken % 10 === 0) {
          yield* roundTrips(b, a);
          assert.ok(sent > taken, "the sender goes on while there is room");
        }
        assert.ok(sent - taken <= window.frames, `${sent} frames sent and ${taken} taken`);
        assertFrame(yield* b.receive, frameOf(taken, 2000), `frame ${taken}`);
      }
      yield* Fiber.join(sending);
    }),
  },
  {
    name: "holds a bounded number of bytes",
    run: Effect.fnUntraced(function* (make) {
      const window = { frames: 3, frameBytes: 4096 };
      const [a, b] = yield* openPair(yield* make({ ...usual, window }));
      const next = uniform(5);
      const sizes = Array.from({ length: 300 }, () => Math.ceil(4096 * next()));
      let held = 0;
      const sending = yield* startNow(
        Effect.forEach(
          sizes,
          (bytes) =>
            Effect.tap(a.send(frameOf(bytes, bytes)), () => Effect.sync(() => held += bytes)),
          { discard: true },
        ),
      );
      for (const bytes of sizes) {
        assertFrame(yield* b.receive, frameOf(bytes, bytes), `a frame of ${bytes} bytes`);
        held -= bytes;
        assert.ok(held <= window.frames * window.frameBytes, `${held} bytes held`);
      }
      yield* Fiber.join(sending);
    }),
  },
  {
    name: "lets a receiver wait until something comes",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      const receiving = yield* startNow(b.receive);
      yield* roundTrips(b, a);
      assert.equal(receiving.pollUnsafe(), undefined);
      yield* a.send(Uint8Array.of(9));
      assertFrame(yield* Fiber.join(receiving), Uint8Array.of(9), "the frame waited for");
    }),
  },
  {
    name: "drains when the peer has taken everything, not before",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      yield* a.drain;
      yield* a.send(Uint8Array.of(1));
      yield* a.send(Uint8Array.of(2));
      const draining = yield* startNow(a.drain);
      yield* b.receive;
      yield* roundTrips(b, a);
      assert.equal(draining.pollUnsafe(), undefined);
      yield* b.receive;
      yield* Fiber.join(draining);
    }),
  },
  {
    name: "delivers everything that was sent before a successful close, then LinkClosed",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      const sound = yield* startNow(b.broken);
      yield* sendRandom(a, 1, 10, 4096);
      yield* a.close(Exit.void);
      yield* receiveRandom(b, 1, 10, 4096);
      assertClosed(yield* Effect.flip(b.receive), /^the peer is done$/);
      assertClosed(yield* Effect.flip(b.send(Uint8Array.of(0))), /^the peer is done$/);
      assert.equal(sound.pollUnsafe(), undefined, "a peer that is done has broken nothing");
    }),
  },
  {
    name: "tells a drain that the peer left without taking everything",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      yield* a.send(Uint8Array.of(1));
      yield* a.send(Uint8Array.of(2));
      const draining = yield* startNow(a.drain);
      yield* b.receive;
      yield* b.close(Exit.void);
      assertClosed(yield* Effect.flip(Fiber.join(draining)), /^the peer is done$/);
    }),
  },
  {
    name: "carries the sentence of a failure to the peer's receive, send, drain and broken",
    run: Effect.fnUntraced(function* (make) {
      const window = { frames: 2, frameBytes: 2000 };
      const [a, b] = yield* openPair(yield* make({ ...usual, window }));
      const sending = yield* startNow(
        Effect.forever(a.send(new Uint8Array(2000))),
      );
      const waiting = [a.receive, a.drain, a.broken, Fiber.join(sending)];
      const fibers = yield* Effect.forEach(waiting, (effect) => startNow(Effect.flip(effect)));
      yield* b.close(Exit.fail(new Error("Cannot compile the shader: found a comma")));
      for (const fiber of fibers) {
        const error = yield* Fiber.join(fiber);
        assertClosed(error as LinkError, /^Cannot compile the shader: found a comma$/);
      }
    }),
  },
  {
    name: "delivers what was sent before a failure, and says that the link is broken at once",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      yield* a.send(Uint8Array.of(4));
      yield* a.close(Exit.fail(new Error("no memory")));
      assertClosed(yield* Effect.flip(b.broken), /^no memory$/);
      assertFrame(yield* b.receive, Uint8Array.of(4), "the last frame");
      assertClosed(yield* Effect.flip(b.receive), /^no memory$/);
    }),
  },
  {
    name: "says when the peer was interrupted",
    run: Effect.fnUntraced(function* (make) {
      const [a, b] = yield* openPair(yield* make(usual));
      yield* a.close(Exit.interrupt(1));
      assertClosed(yield* Effect.flip(b.receive), /^the run was interrupted$/);
      assertClosed(yield* Effect.flip(b.broken), /^the run was interrupted$/);
    }),
  },
  {
    name: "fails, and never hangs, when used after its own close",
    run: Effect.fnUntraced(function* (make) {
      const [a] = yield* openPair(yield* make(usual));
      const pending = yield* startNow(Effect.flip(a.receive));
      yield* a.close(Exit.void);
      assert.ok((yield* Fiber.join(pending)) instanceof LinkFailed);
      const uses: ReadonlyArray<Effect.Effect<unknown, LinkError>> = [
        a.send(Uint8Array.of(1)),
        a.receive,
        a.drain,
        a.broken,
      ];
      for (const use of uses) {
        assert.ok((yield* Effect.flip(use)) instanceof LinkFailed);
      }
    }),
  },
  {
    name: "keeps runs and pairs apart",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const pairs: ReadonlyArray<readonly [string, Slot, Slot]> = [
        ["one", 0, 1],
        ["one", 1, 2],
        ["one", 0, 2],
        ["one", "driver", 0],
        ["one", 1, 11],
        ["two", 0, 1],
        ["two", "driver", 0],
      ];
      // One end of each pair waits before the other ends come, in another order.
      const ones = yield* Effect.forEach(
        pairs,
        ([run, one, other]) => startNow(openEnd(members(one), run, one, other)),
      );
      const others = yield* Effect.forEach(
        pairs.toReversed(),
        ([run, one, other]) => openEnd(members(other), run, other, one),
      );
      yield* Effect.forEach(
        pairs,
        (_, i) =>
          Effect.gen(function* () {
            const [a, b] = [yield* Fiber.join(ones[i]!), others.toReversed()[i]!];
            yield* Effect.all([
              sendRandom(a, 1000 * i, 100, 300),
              receiveRandom(b, 1000 * i, 100, 300),
              sendRandom(b, 1000 * i + 500, 100, 300),
              receiveRandom(a, 1000 * i + 500, 100, 300),
            ], all);
          }),
        all,
      );
    }),
  },
  {
    name: "lets a ring of 8 turn with room for one frame",
    run: Effect.fnUntraced(function* (make) {
      const size = 8;
      const window = { frames: 1, frameBytes: 1000 };
      const members = yield* make({ ...usual, window });
      yield* Effect.forEach(
        Array.from({ length: size }, (_, rank) => rank),
        (rank) =>
          Effect.gen(function* () {
            const [right, left] = [(rank + 1) % size, (rank + size - 1) % size];
            const [toRight, toLeft] = yield* Effect.all([
              openEnd(members(rank), "ring", rank, right),
              openEnd(members(rank), "ring", rank, left),
            ], { concurrency: "unbounded" });
            let held = frameOf(rank, 1000);
            for (let step = 1; step <= 100; step++) {
              [, held] = yield* Effect.all([toRight.send(held), toLeft.receive], {
                concurrency: "unbounded",
              });
              const origin = (rank + size * 100 - step) % size;
              assertFrame(held, frameOf(origin, 1000), `step ${step} of rank ${rank}`);
            }
          }),
        all,
      );
    }),
  },
  {
    name: "gives up when the peer does not open its end",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const alone = yield* startNow(Effect.flip(openEnd(members(0), "run", 0, 1)));
      yield* TestClock.adjust("9 seconds");
      assert.equal(alone.pollUnsafe(), undefined);
      yield* TestClock.adjust("1 seconds");
      const error = yield* Fiber.join(alone);
      assert.ok(error instanceof LinkFailed);
      assert.match(
        error.message,
        /from rank 0 to rank 1 in run run: it needs rank 1 to open its end within 10s/,
      );
    }, Effect.provide(TestClock.layer())),
  },
  {
    name: "refuses a link to oneself",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      assert.ok((yield* Effect.flip(openEnd(members(3), "run", 3, 3))) instanceof LinkFailed);
    }),
  },
  {
    name: "is as it was after an interrupted receive or send",
    run: Effect.fnUntraced(function* (make) {
      const window = { frames: 1, frameBytes: 2000 };
      const [a, b] = yield* openPair(yield* make({ ...usual, window }));
      for (let round = 0; round < 20; round++) {
        const receiving = yield* startNow(b.receive);
        yield* Fiber.interrupt(receiving);
        yield* a.send(frameOf(round, 2000));
        const sending = yield* startNow(a.send(frameOf(99, 2000)));
        yield* Fiber.interrupt(sending);
        assertFrame(yield* b.receive, frameOf(round, 2000), `round ${round}`);
      }
      yield* a.close(Exit.void);
      assertClosed(yield* Effect.flip(b.receive), /^the peer is done$/);
    }),
  },
  {
    name: "gives up an interrupted open, and opens later",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      const opening = yield* Effect.forkScoped(
        Effect.scoped(openEnd(members(0), "run", 0, 1)),
        { startImmediately: true },
      );
      yield* Fiber.interrupt(opening);
      const [a, b] = yield* openPair(members);
      yield* a.send(Uint8Array.of(1));
      assertFrame(yield* b.receive, Uint8Array.of(1), "the first frame");
    }),
  },
  {
    name: "opens anew after both ends closed, with nothing left of before",
    run: Effect.fnUntraced(function* (make) {
      const members = yield* make(usual);
      for (let round = 0; round < 50; round++) {
        const [a, b] = yield* openPair(members);
        yield* a.send(frameOf(round, 10));
        assertFrame(yield* b.receive, frameOf(round, 10), `round ${round}`);
        yield* a.send(Uint8Array.of(1));
        yield* b.send(Uint8Array.of(2));
        yield* Effect.all([a.close(Exit.void), b.close(Exit.fail(new Error("x")))], all);
      }
    }),
  },
];

/** Runs a case on the links of `make`; one that hangs fails after `limit`. */
export const runLinkCase = (
  { run }: LinkCase,
  make: MakeLinks,
  limit: Duration.Input = "30 seconds",
): Promise<void> => run(make).pipe(Effect.scoped, Effect.timeout(limit), Effect.runPromise);

/** Registers every case as a test of the links called `name`. */
export const testLinks = (
  name: string,
  make: MakeLinks,
  /** Why its tests cannot run here, if they cannot. */
  { ignore }: { readonly ignore?: string | undefined } = {},
): void => {
  const suffix = ignore === undefined ? "" : ` (not here: ${ignore})`;
  for (const linkCase of linkCases) {
    Deno.test({
      name: `the ${name} link ${linkCase.name}${suffix}`,
      ignore: ignore !== undefined,
      fn: () => runLinkCase(linkCase, make),
    });
  }
};
