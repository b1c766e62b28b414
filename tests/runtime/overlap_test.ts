/**
 * How much communication a ring hides, to the millisecond: devices that only wait and links that only take their time,
 * on the test clock, around everything else that a run consists of.
 *
 * @module
 */
import { Effect, Layer, Semaphore } from "effect";
import assert from "node:assert/strict";
import { causal, sinkWindow } from "../../plugins/attention.ts";
import { memoryLinks } from "../../plugins/memory.ts";
import { attend, type AttendResult } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { Device } from "../../runtime/device.ts";
import { headerBytes } from "../../runtime/frame.ts";
import type { Tile } from "../../runtime/kernel.ts";
import type { Layout } from "../../runtime/layout.ts";
import { Links } from "../../runtime/link.ts";
import { asLse } from "../../runtime/lse.ts";
import { type Band, pairsBetween, unbounded } from "../../runtime/mask.ts";
import type { Variant } from "../../runtime/variant.ts";
import { hiddenFraction } from "../../runtime/timeline.ts";
import { inVirtualTime } from "../support/virtual_time.ts";

const [heads, headDim] = [8, 256];
/** 16 tokens make the smallest block, which four frames carry. */
const tokensPerBlock = 16;
const frameBytes = headerBytes + 64 * 1024;
/** Milliseconds that a device takes for a block. */
const compute = 100;

const everything: Band = { back: unbounded, ahead: unbounded };

/** Milliseconds that a device takes for what it is asked. */
type Cost = (tiles: ReadonlyArray<Tile>, band: Band) => number;
/** So many for each pair that counts. */
const perPair = (milliseconds: number): Cost => (tiles, band) =>
  milliseconds * tiles.reduce(
    (sum, { queries, keys, full }) => sum + pairsBetween(full ? everything : band, queries, keys),
    0,
  );

/** A device that answers with zeros, one block at a time, after the time that a block takes. */
const waiting = (cost: Cost) =>
  Effect.map(Semaphore.make(1), (busy): Device["Service"] => {
    const work = (milliseconds: number) =>
      Semaphore.withPermit(busy, Effect.as(Effect.sleep(milliseconds), milliseconds));
    return {
      info: {
        name: "waiting",
        backend: "the test clock",
        software: true,
        features: [],
        gradients: true,
        forms: "TypeScript",
        memory: 2 ** 40,
        largestTensor: 2 ** 31,
      },
      begin: ({ batch, tokens, heads, headDim }) =>
        Effect.succeed({
          absorb: (_block, tiles, band) => work(cost(tiles, band)),
          finish: Effect.sync(() => ({
            o: new Float32Array(batch * tokens * heads * headDim),
            lse: asLse(new Float32Array(batch * tokens * heads)),
          })),
        }),
      beginBackward: ({ batch, tokens, heads, headDim }) =>
        Effect.succeed({
          absorb: (block) =>
            Effect.map(work(2.5 * compute), (busy) => ({
              gradients: new Float32Array(2 * batch * block.tokens * heads * headDim),
              busy,
            })),
          finish: Effect.sync(() => new Float32Array(batch * tokens * heads * headDim)),
        }),
    };
  });

/** Links on which what ranks say to each other takes so many milliseconds a block, in either direction. */
const slow = (links: Links["Service"], perBlock: number): Links["Service"] => ({
  ...links,
  open: (ends) =>
    ends.self === "driver" || ends.peer === "driver" ? links.open(ends) : Effect.gen(function* () {
      const link = yield* links.open(ends);
      const wire = yield* Semaphore.make(1);
      return {
        ...link,
        send: (frame) =>
          Semaphore.withPermit(
            wire,
            Effect.andThen(Effect.sleep(perBlock / 4), link.send(frame)),
          ),
      };
    }),
});

interface RunOptions {
  /** Both passes. */
  readonly gradients?: boolean;
  readonly attention?: ReadonlyArray<Variant>;
  readonly layout?: Layout;
  readonly cost?: Cost;
}

/** A run of so many ranks, each with its own device, shards of so many smallest blocks. */
const run = (
  ranks: number | ReadonlyArray<number>,
  perBlock: number,
  blocks: number,
  { gradients = false, attention = [], layout = "contiguous", cost = () => compute }: RunOptions =
    {},
) => {
  const weights = typeof ranks === "number" ? Array<number>(ranks).fill(1) : ranks;
  const tokens = weights.filter((weight) => weight > 0).length * blocks * tokensPerBlock;
  const zeros = new Float32Array(tokens * heads * headDim);
  const cotangent = gradients ? { cotangent: zeros } : {};
  return inVirtualTime(
    Effect.gen(function* () {
      const links = yield* Links;
      const crew = Crew.of({
        equipment: { devices: [], memory: () => Infinity, together: true },
        // A device for each rank.
        run: (...args) =>
          Effect.gen(function* () {
            const device = Layer.succeed(Device, yield* waiting(cost));
            const local = Crew.local().pipe(
              Layer.provide(Layer.merge(device, Layer.succeed(Links, slow(links, perBlock)))),
            );
            yield* Effect.provide(Crew.use((crew) => crew.run(...args)), local);
          }),
      });
      return yield* attend({
        tokens,
        heads,
        headDim,
        q: zeros,
        k: zeros,
        v: zeros,
        ...cotangent,
        attention,
        ring: weights.length,
        weights,
        layout,
      }).pipe(Effect.provideService(Crew, crew));
    }).pipe(Effect.provide(memoryLinks({ maxFrame: frameBytes }))),
  );
};

/** From the first block's begin to the last one's end, over all ranks. */
const duration = ({ timeline }: AttendResult): number => {
  const work = timeline.filter(({ activity }) => activity === "compute");
  return Math.max(...work.map(({ end }) => end)) - Math.min(...work.map(({ begin }) => begin));
};

for (const share of [0.5, 0.9]) {
  Deno.test(`a link that takes ${100 * share} % of the time of the arithmetic is hidden wholly`, async () => {
    for (const ring of [2, 4, 8]) {
      for (const blocks of [1, 4]) {
        const result = await run(ring, share * compute, blocks);
        assert.equal(duration(result), ring * blocks * compute, `${ring} ranks, ${blocks} blocks`);
        assert.equal(hiddenFraction(result.timeline), 1);
      }
    }
  });
}

for (const share of [0.5, 0.9]) {
  Deno.test(`a causal zigzag ring hides a link on which a shard takes ${100 * share} % of a step`, async () => {
    for (const [ring, blocks] of [[2, 8], [4, 8], [5, 16], [8, 8], [8, 32]] as const) {
      const tokens = ring * blocks * tokensPerBlock;
      const milliseconds = 0.02;
      const step = milliseconds * tokens * (tokens + 1) / 2 / ring ** 2;
      const result = await run(ring, share * step / blocks, blocks, {
        ...{ attention: [causal()], layout: "zigzag", cost: perPair(milliseconds) },
      });
      const found = duration(result);
      assert.ok(Math.abs(found - ring * step) < 1e-6, `${ring} ranks: ${found} of ${ring * step}`);
      assert.equal(hiddenFraction(result.timeline), 1);
    }
  });
}

Deno.test("a link that is slower than the arithmetic is exposed by just the difference", async () => {
  const result = await run(4, 1.5 * compute, 1);
  // Step 0 hides the first 100 ms of the first hop; then a block arrives every 150 ms, and the last is computed on.
  assert.equal(duration(result), 3 * 1.5 * compute + compute);
  // A block is seen to arrive from its first quarter on.
  assert.ok(Math.abs(hiddenFraction(result.timeline) - (1 - 50 / (0.75 * 150))) < 1e-9);
});

Deno.test("both passes hide what travels, and gradients come home one hop after the arithmetic", async () => {
  const [ring, share] = [4, 0.9];
  const result = await run(ring, share * compute, 1, { gradients: true });
  assert.equal(duration(result), ring * compute + ring * 2.5 * compute);
  assert.equal(hiddenFraction(result.timeline), 1);
});

Deno.test("a block goes on chunk by chunk: a far rank waits for its bytes once, not once a hop", async () => {
  // Of the first rank's keys everybody sees all, and else nothing but itself.
  const attention = [sinkWindow({ first: tokensPerBlock, size: 1 })];
  const { timeline } = await run(4, 40, 1, { attention });
  const began = Math.min(...timeline.filter((i) => i.activity === "forward").map((i) => i.begin));
  const arrived = timeline.find(({ rank, activity }) => rank === 3 && activity === "receive")!.end;
  // A hop takes 40 ms, and each further one a chunk of 10 ms more.
  assert.equal(arrived - began, 40 + 2 * 10);
});
