import { Clock, Deferred, Effect, Layer, Queue, Result, Semaphore } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { referenceKernel } from "../../kernels/reference.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend, type AttendOptions } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { type Accumulator, Device } from "../../runtime/device.ts";
import { DeviceFailed } from "../../runtime/errors.ts";
import { headerBytes } from "../../runtime/frame.ts";
import { Block } from "../../runtime/block.ts";
import { Held } from "../../runtime/held.ts";
import { layouts } from "../../runtime/layout.ts";
import { Ledger } from "../../runtime/ledger.ts";
import { Links, type Slot } from "../../runtime/link.ts";
import { type Plan, planOf, type PlanSpec, type StepPlan } from "../../runtime/plan.ts";
import { Recorder } from "../../runtime/recorder.ts";
import { ring } from "../../runtime/ring.ts";
import { nothing, remainingOf, requiredOf } from "../../runtime/standing.ts";
import { faultyLinks } from "../support/faulty_links.ts";
import { inProcess } from "../support/in_process.ts";
import { normals, uniform } from "../support/random.ts";
import { inVirtualTime } from "../support/virtual_time.ts";
import { blocks } from "../../plugins/attention.ts";
import { causal, full, type Mask, randomBlocks, window } from "../support/masks.ts";

/** 16 tokens make the smallest block. */
const tokensPerBlock = 16;

const planned = (
  ranks: number | ReadonlyArray<number>,
  tokens: number,
  { mask = full, layout = "contiguous" }: Partial<Pick<PlanSpec, "layout">> & { mask?: Mask } = {},
): Plan =>
  Result.getOrThrow(planOf({
    problem: { batch: 1, tokens, heads: 8, kvHeads: 8, headDim: 256, scale: 1, attention: mask },
    layout,
    weights: typeof ranks === "number" ? Array(ranks).fill(1) : ranks,
    wire: "f32",
  }));

/** Milliseconds that a rank's device takes for a block, and that a hop to a rank takes. */
interface Pace {
  readonly compute: (rank: number) => number;
  readonly hop: (to: number) => number;
}

/** What a rank did. */
interface Deeds {
  readonly absorbed: Array<number>;
  readonly received: Array<number>;
  readonly sent: Array<number>;
  /** When each of them had been taken. */
  readonly sentAt: Array<number>;
  readonly held: Held;
}

/**
 * Turns a ring with devices and links that only pass the time. A link holds nothing: a block leaves its sender while
 * the receiver takes it.
 */
const turn = (plan: Plan, { compute, hop }: Pace) =>
  Effect.gen(function* () {
    type Sent = { readonly block: Block; readonly taken: Deferred.Deferred<void> };
    const toward = new Map<string, Queue.Queue<Sent>>();
    for (const { rank, sends } of plan.ranks) {
      for (const { to } of sends) toward.set(`${rank} ${to}`, yield* Queue.unbounded<Sent>());
    }
    const deeds = yield* Effect.forEach(plan.ranks, (mine) =>
      Effect.gen(function* () {
        const { rank } = mine;
        const held = new Held();
        const done: Deeds = { absorbed: [], received: [], sent: [], sentAt: [], held };
        const home = new Map<number, Block>();
        for (const block of plan.blocks.filter((block) => block.home === rank)) {
          held.hold(block, block.path.length > 0 ? 2 : 1);
          home.set(block.id, Block.whole(block, Uint8Array.of(block.id)));
        }
        // A device works on one block at a time, in the order in which they were queued.
        const device = yield* Semaphore.make(1);
        yield* ring({
          plan: mine,
          home,
          ledger: new Ledger(rank, requiredOf(mine)),
          held,
          absorb: (block) => {
            done.absorbed.push(block.plan.id);
            return Semaphore.withPermit(
              device,
              Effect.as(Effect.sleep(compute(rank)), { busy: compute(rank), deliver: Effect.void }),
            );
          },
          recorder: yield* Recorder.start(rank, () => Effect.void),
          receiveLeft: (block) =>
            Effect.gen(function* () {
              const stops = [block.plan.home, ...block.plan.path];
              const from = stops[stops.indexOf(rank) - 1]!;
              const { block: sent, taken } = yield* Queue.take(toward.get(`${from} ${rank}`)!);
              assert.equal(sent.plan.id, block.plan.id);
              yield* Effect.sleep(hop(rank));
              done.received.push(block.plan.id);
              block.arrivedUntil(block.bytes.length);
              yield* Deferred.succeed(taken, undefined);
            }),
          sendRight: (block, to) =>
            Effect.gen(function* () {
              yield* block.until(block.bytes.length);
              const taken = yield* Deferred.make<void>();
              yield* Queue.offer(toward.get(`${rank} ${to}`)!, { block, taken });
              yield* Deferred.await(taken);
              done.sent.push(block.plan.id);
              done.sentAt.push(yield* Clock.currentTimeMillis);
            }),
        });
        return done;
      }), { concurrency: "unbounded" });
    return { deeds, milliseconds: yield* Clock.currentTimeMillis };
  });

const steadily = (compute: number, hop: number): Pace => ({
  compute: () => compute,
  hop: () => hop,
});

Deno.test("ring() hides hops behind the arithmetic, and arithmetic behind slower hops", async () => {
  for (const ranks of [1, 2, 3, 5, 8, 16]) {
    const plan = planned(ranks, ranks * tokensPerBlock);
    const busy = await inVirtualTime(turn(plan, steadily(50, 30)));
    assert.equal(busy.milliseconds, ranks * 50, `${ranks} slow devices`);
    const starved = await inVirtualTime(turn(plan, steadily(30, 50)));
    assert.equal(starved.milliseconds, (ranks - 1) * 50 + 30, `${ranks} slow links`);
  }
});

Deno.test("ring() makes the left neighbour of a slow device wait", async () => {
  const plan = planned(8, 8 * tokensPerBlock);
  const pace: Pace = { compute: (rank) => rank === 3 ? 1000 : 10, hop: () => 1 };
  const { deeds } = await inVirtualTime(turn(plan, pace));
  // While it is busy at home there is room for three; the first of them leaves after two seconds, and then one a second.
  assert.deepEqual(deeds[2]!.sentAt.map((at) => Math.floor(at / 1000)), [0, 0, 0, 2, 3, 4, 5]);
  assert.equal(deeds[3]!.held.peak, 4 * plan.blocks[0]!.bytes);
  assert.equal(plan.ranks[3]!.kvBytes, 4 * plan.blocks[0]!.bytes);
});

Deno.test("ring() holds three passing blocks where some are only computed on and some only go on", async () => {
  const mask: Mask = window(20);
  const plan = planned(5, 5 * tokensPerBlock, { mask, layout: "zigzag" });
  // All that reaches rank 4 waits there, for the device or for the way to rank 0.
  const pace: Pace = {
    compute: (rank) => rank === 4 ? 1000 : 10,
    hop: (to) => to === 0 ? 1000 : 1,
  };
  const { deeds } = await inVirtualTime(turn(plan, pace));
  assert.equal(deeds[4]!.held.peak, plan.ranks[4]!.kvBytes);
});

Deno.test("ring() skips what the mask empties, and sends no block farther than it is needed", async () => {
  const plan = planned(4, 4 * tokensPerBlock, { mask: causal });
  const { deeds } = await inVirtualTime(turn(plan, steadily(5, 5)));
  assert.deepEqual(deeds.map(({ absorbed }) => absorbed), [[0], [1, 0], [2, 1, 0], [3, 2, 1, 0]]);
  assert.deepEqual(deeds.map(({ sent }) => sent), [[0], [1, 0], [2, 1, 0], []]);
  assert.deepEqual(deeds.map(({ received }) => received), [[], [0], [1, 0], [2, 1, 0]]);
});

Deno.test("ring() has room for blocks that several ranks send at once, each of which must go on", async () => {
  // Ranks 4 and 9 need what all have. From 0 … 3 it comes to 4 first and from 5 … 8 to 9, and then they exchange it: with
  // room for three each would wait for the other to take one.
  const ranks = 10;
  const table = Array.from({ length: ranks ** 2 }, (_, i) => {
    const [query, key] = [Math.floor(i / ranks), i % ranks];
    return Number(query === key || (query % 5 === 4 && key % 5 !== 4));
  });
  const mask = [blocks({ size: tokensPerBlock, table })];
  const plan = planned(ranks, ranks * tokensPerBlock, { mask });
  assert.deepEqual(plan.blocks.map(({ path }) => path), [
    ...Array(4).fill([4, 9]),
    [],
    ...Array(4).fill([9, 4]),
    [],
  ]);
  const { deeds } = await inVirtualTime(turn(plan, steadily(5, 5)));
  for (const rank of [4, 9]) assert.equal(deeds[rank]!.absorbed.length, 9);
});

const anyPlan = fc.record({
  weights: fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 16 })
    .filter((weights) => weights.some((weight) => weight > 0)),
  blocks: fc.integer({ min: 1, max: 4 }),
  layout: fc.constantFrom(...layouts),
  mask: fc.oneof(
    fc.constant(full),
    fc.constant(causal),
    fc.integer({ min: 1, max: 500 }).map(window),
    fc.nat().map((seed) => (tokens: number) => randomBlocks(tokens, tokensPerBlock / 2, seed)),
  ),
}).map(({ weights, blocks, layout, mask }) => {
  const tokens = weights.length * blocks * tokensPerBlock;
  return planned(weights, tokens, {
    layout,
    mask: typeof mask === "function" ? mask(tokens) : mask,
  });
});

/** Some ranks are slow throughout, and every block takes another while. */
const anyPace = fc.record({ seed: fc.nat(), slow: fc.array(fc.nat(15), { maxLength: 3 }) }).map(
  ({ seed, slow }): Pace => {
    const next = uniform(seed);
    const delay = (rank: number) => Math.floor((slow.includes(rank) ? 200 : 6) * next());
    return { compute: delay, hop: delay };
  },
);

Deno.test("ring() ends, in the order, the memory and the bytes of its plan, whatever takes how long", async () => {
  let fullest = 0;
  await fc.assert(
    fc.asyncProperty(anyPlan, anyPace, async (plan, pace) => {
      const { deeds } = await inVirtualTime(turn(plan, pace));
      const bytes = (ids: ReadonlyArray<number>) =>
        ids.reduce((sum, id) => sum + plan.blocks[id]!.bytes, 0);
      plan.ranks.forEach(({ rank, steps, sends, receives, sentBytes, kvBytes }) => {
        const { absorbed, sent, received, held } = deeds[rank]!;
        const computed = steps.filter(({ state }) => state !== "skip");
        assert.deepEqual(absorbed, computed.map(({ block }) => block.id));
        assert.deepEqual(sent, sends.map(({ block }) => block.id));
        assert.deepEqual(received, receives.map(({ block }) => block.id));
        assert.equal(bytes(sent), sentBytes);
        assert.ok(held.peak <= kvBytes, `rank ${rank} held ${held.peak}, planned ${kvBytes}`);
        if (receives.length > 3 && held.peak === kvBytes) fullest++;
      });
    }),
    { numRuns: 100 },
  );
  assert.ok(fullest > 0, "no rank was ever as full as it may be");
});

Deno.test("what is left of a plan is merged in its order, wherever its ranks stand", async () => {
  let survivors = 0;
  await fc.assert(
    fc.asyncProperty(anyPlan, anyPace, fc.nat(), async (plan, pace, seed) => {
      const next = uniform(seed);
      const standings = plan.ranks.map((mine) => {
        const required = requiredOf(mine).length;
        const kind = next();
        if (kind < 0.3) return nothing;
        if (kind < 0.4) return { ...nothing, collected: true };
        return { loaded: true, merged: Math.floor(next() * (required + 1)), collected: false };
      });
      const left = remainingOf(plan, standings);
      const { deeds } = await inVirtualTime(turn(left, pace));
      plan.ranks.forEach((mine, rank) => {
        const { collected, merged } = standings[rank]!;
        assert.deepEqual(
          deeds[rank]!.absorbed,
          collected ? [] : requiredOf(mine).slice(merged),
          `rank ${rank}`,
        );
        assert.ok(deeds[rank]!.held.peak <= mine.kvBytes, `rank ${rank} holds no more than before`);
        if (merged > 0 && merged < requiredOf(mine).length) survivors++;
      });
      // Nothing travels farther than somebody needs it.
      for (const { id, path } of left.blocks) {
        if (path.length > 0) assert.ok(deeds[path.at(-1)!]!.absorbed.includes(id), `block ${id}`);
      }
    }),
    { numRuns: 100 },
  );
  assert.ok(survivors > 0, "no rank was in the middle of its work");
});

Deno.test("ring() delivers what the device has done in the order of the plan, whatever it answers first", async () => {
  const plan = planned(1, 6 * tokensPerBlock);
  const mine = plan.ranks[0]!;
  const [answered, delivered]: [Array<number>, Array<number>] = [[], []];
  const home = new Map(plan.blocks.map((block) => [
    block.id,
    Block.whole(block, new Uint8Array(1)),
  ]));
  const held = new Held();
  for (const block of plan.blocks) held.hold(block, 1);
  const run = Effect.gen(function* () {
    yield* ring({
      plan: mine,
      home,
      ledger: new Ledger(0, requiredOf(mine)),
      held,
      // Every second block is done before the one in front of it.
      absorb: ({ plan: { id } }) =>
        Effect.as(
          Effect.andThen(
            Effect.sleep(id % 2 === 0 ? 10 : 1),
            Effect.sync(() => void answered.push(id)),
          ),
          { busy: 1, deliver: Effect.sync(() => void delivered.push(id)) },
        ),
      receiveLeft: () => Effect.never,
      sendRight: () => Effect.never,
      recorder: yield* Recorder.start(0, () => Effect.void),
    });
  });
  await inVirtualTime(run);
  const order = mine.steps.map(({ block }) => block.id);
  assert.deepEqual(delivered, order);
  assert.notDeepEqual(answered, order);
});

Deno.test("ring() merges no block twice and leaves none out, even where its plan says so", async () => {
  const plan = planned(2, 2 * tokensPerBlock);
  const withSteps = (
    change: (steps: ReadonlyArray<StepPlan>) => ReadonlyArray<StepPlan>,
  ): Plan => ({
    ...plan,
    ranks: plan.ranks.map((mine) => ({ ...mine, steps: change(mine.steps) })),
  });
  const twice = withSteps((steps) => [...steps, steps[0]!]);
  await assert.rejects(
    inVirtualTime(turn(twice, steadily(1, 1))),
    /block [01] must be merged exactly once: found 2 times/,
  );
  const other = withSteps((
    [home, step],
  ) => [home!, { ...step!, block: { ...step!.block, id: 9 } }]);
  await assert.rejects(
    inVirtualTime(turn(other, steadily(1, 1))),
    /block 9 must be merged exactly once: found 0 times/,
  );
});

// --- Whole runs ---------------------------------------------------------------------------------

/** Rank r holds r + 1 tokens, by which a device knows it. */
const ranks = 4;
const small = { tokens: 10, heads: 2, headDim: 8, ring: ranks, weights: [1, 2, 3, 4] } as const;
const elements = small.tokens * small.heads * small.headDim;
const inputs: AttendOptions = {
  ...small,
  q: normals(1, elements),
  k: normals(2, elements),
  v: normals(3, elements),
};
const reference = inProcess(referenceKernel());

/** Runs over links and a device that count what is open. */
const attendOver = (
  { device = reference, change = (links) => links, options = inputs }: {
    device?: Device["Service"];
    change?: (links: Links["Service"]) => Links["Service"];
    options?: AttendOptions;
  },
) =>
  Effect.gen(function* () {
    const open = new Set<unknown>();
    const counted = <A, E, R>(acquired: Effect.Effect<A, E, R>) =>
      Effect.tap(acquired, (thing) =>
        Effect.acquireRelease(
          Effect.sync(() => open.add(thing)),
          () => Effect.sync(() => open.delete(thing)),
        ));
    const links = change(yield* Links);
    const result = yield* attend(options).pipe(
      Effect.provide(Crew.local()),
      Effect.provideService(Links, { ...links, open: (ends) => counted(links.open(ends)) }),
      Effect.provideService(Device, {
        ...device,
        begin: (queries) => counted(device.begin(queries)),
      }),
      Effect.result,
    );
    assert.equal(open.size, 0, "a rank did not end");
    return result;
  }).pipe(
    Effect.provide(Layer.fresh(memoryLinks({ maxFrame: headerBytes + 128 }))),
    Effect.runPromise,
  );

const failureOf = async (options: Parameters<typeof attendOver>[0]) => {
  const result = await attendOver(options);
  return Result.isFailure(result) ? result.failure : assert.fail("there is a result");
};

/** The reference device, but for one rank. */
const exceptOn = (
  rank: number,
  change: (accumulator: Accumulator) => Accumulator,
): Device["Service"] => ({
  ...reference,
  begin: (queries) =>
    Effect.map(
      reference.begin(queries),
      (accumulator) => queries.tokens === rank + 1 ? change(accumulator) : accumulator,
    ),
});

const broken = new DeviceFailed({ device: "reference", attempted: "think", found: "a hole" });

Deno.test("attend() names the rank whose device failed, and the cause, and every rank ends", async () => {
  for (let rank = 0; rank < ranks; rank++) {
    for (let step = 0; step <= ranks; step++) {
      const device = exceptOn(rank, (accumulator) => {
        let steps = 0;
        return {
          absorb: (...args) => steps++ === step ? Effect.fail(broken) : accumulator.absorb(...args),
          finish: step === ranks ? Effect.fail(broken) : accumulator.finish,
        };
      });
      const error = await failureOf({ device });
      assert.ok(error._tag === "RankFailed", error.message);
      assert.deepEqual([error.rank, error.tag, error.reason], [
        rank,
        "DeviceFailed",
        broken.message,
      ]);
    }
  }
});

Deno.test("attend() names the rank whose device cannot begin", async () => {
  const device: Device["Service"] = {
    ...reference,
    begin: (queries) => queries.tokens === 3 ? Effect.fail(broken) : reference.begin(queries),
  };
  const error = await failureOf({ device });
  assert.ok(error._tag === "RankFailed");
  assert.deepEqual([error.rank, error.tag], [2, "DeviceFailed"]);
});

Deno.test("attend() refuses gradients on a device that has no backward pass, before it computes", async () => {
  const device = { info: reference.info, begin: () => assert.fail("it computes") };
  const cotangent = normals(4, elements);
  const error = await failureOf({ device, options: { ...inputs, cotangent } });
  assert.ok(error._tag === "RankFailed");
  assert.match(
    error.reason,
    /Cannot compute gradients on device "reference": it has no backward pass/,
  );
});

Deno.test("attend() refuses a cotangent of another length than q", async () => {
  const error = await failureOf({ options: { ...inputs, cotangent: normals(4, elements - 1) } });
  assert.ok(error._tag === "InvalidProblem");
  assert.match(error.message, /the length of do must be 160 elements/);
});

Deno.test("attend() returns no NaN and no infinity, and says where it was found", async () => {
  for (
    const [tensor, index, value] of [["o", 5, NaN], ["o", 0, Infinity], ["lse", 3, NaN], [
      "lse",
      0,
      Infinity,
    ]] as const
  ) {
    const device = exceptOn(1, (accumulator) => ({
      ...accumulator,
      finish: Effect.map(accumulator.finish, (attended) => {
        attended[tensor][index] = value;
        return attended;
      }),
    }));
    const error = await failureOf({ device });
    assert.ok(error._tag === "RankFailed");
    assert.deepEqual([error.rank, error.tag], [1, "NonFinite"]);
    assert.match(
      error.reason,
      new RegExp(`"${tensor}" of rank 1: .* ${value} at element ${index}`),
    );
  }
});

Deno.test("attend() blames an input that is not finite, not the rank that it was for", async () => {
  for (const tensor of ["q", "k", "v"] as const) {
    const spoilt = Float32Array.from(inputs[tensor]);
    spoilt[77] = NaN;
    const error = await failureOf({ options: { ...inputs, [tensor]: spoilt } });
    assert.ok(error._tag === "TensorInvalid", error.message);
    assert.match(
      error.message,
      new RegExp(`tensor "${tensor}" .* finite everywhere: found NaN at element 77`),
    );
  }
});

Deno.test("attend() takes no damaged frame, whichever of a run's it is", async () => {
  const links: ReadonlyArray<readonly [Slot, Slot]> = [["driver", 2], [1, 2], [2, "driver"]];
  for (const [from, to] of links) {
    for (let at = 0;; at++) {
      let sent = 0;
      const result = await attendOver({
        change: (links) => {
          const faulty = faultyLinks(links, { kind: "flip", at });
          return {
            ...links,
            open: (ends) =>
              ends.self !== from || ends.peer !== to
                ? links.open(ends)
                : Effect.map(faulty.open(ends), (link) => ({
                  ...link,
                  send: (frame) => Effect.andThen(Effect.sync(() => sent++), link.send(frame)),
                })),
          };
        },
      });
      if (Result.isSuccess(result)) {
        assert.equal(at, sent, `frame ${at} from ${from} to ${to} was taken`);
        assert.ok(at >= 3, "there were frames to damage");
        break;
      }
      const { failure } = result;
      const tag = failure._tag === "RankFailed" ? failure.tag : failure._tag;
      assert.equal(tag, "FrameRejected", `frame ${at} from ${from} to ${to}: ${failure.message}`);
    }
  }
});

// --- The ledger ---------------------------------------------------------------------------------

Deno.test("Ledger fails where a block is merged twice, and where one is missing", () => {
  const ledger = new Ledger(2, [5, 7]);
  const enter = (block: number) => Effect.runSync(Effect.result(ledger.enter(block)));
  const complete = () => Effect.runSync(Effect.result(ledger.complete));
  assert.ok(Result.isSuccess(enter(5)));
  const missing = complete();
  assert.ok(Result.isFailure(missing));
  assert.match(
    missing.failure.message,
    /rank 2's result: block 7 must be merged exactly once: found 0 times/,
  );
  const twice = enter(5);
  assert.ok(Result.isFailure(twice));
  assert.match(twice.failure.message, /block 5 must be merged exactly once: found 2 times/);
  assert.ok(Result.isSuccess(enter(7)));
  assert.ok(Result.isSuccess(complete()));
});
