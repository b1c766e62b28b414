/**
 * The contract of a whole ring: what `attend` must give over any device and any links. A pair's test is one call of
 * `testRing`. Every result is compared with the float64 oracle, must be complete, and must be one that zeros or a
 * neighbour's rows would not pass for.
 *
 * @module
 */
import { Effect, Layer, ManagedRuntime, Result } from "effect";
import fc from "fast-check";
import assert from "node:assert/strict";
import { denseAttention, type Judgement } from "../../kernels/oracle.ts";
import { namesOf } from "../../runtime/attention.ts";
import { attend, type AttendResult } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import type { Device } from "../../runtime/device.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import { headerBytes } from "../../runtime/frame.ts";
import { type Layout, layouts } from "../../runtime/layout.ts";
import { Links, type Slot } from "../../runtime/link.ts";
import type { Plan, Problem } from "../../runtime/plan.ts";
import { maxAbs, relativeL2, sameNumbers } from "../support/closeness.ts";
import {
  assertClose,
  attend as attendAtOnce,
  DeviceBound,
  type Inputs,
  rowsOf,
  stretch,
} from "../support/cut.ts";
import { type Fault, faultKinds, faultyLinks } from "../support/faulty_links.ts";
import { normals, uniform } from "../support/random.ts";
import { positionsOfSpan } from "../support/spans.ts";
import { causal, full, judged, type Mask, window } from "../support/masks.ts";

/** One promise of the contract; fails by `assert`. */
export interface RingCase {
  readonly name: string;
  readonly run: Effect.Effect<void, unknown, Device | Links>;
}

/** An attention problem and the ring that solves it. */
export interface Turn {
  readonly ring: number | ReadonlyArray<number>;
  readonly tokens: number;
  readonly layout: Layout;
  readonly mask: Mask;
  /** Query heads and K/V heads. */
  readonly heads: readonly [number, number];
  readonly headDim: number;
  readonly batch?: number;
  readonly scale?: number;
  readonly wire?: DType;
}

/** The problem of a turn. */
export const problemOf = ({ tokens, mask, heads, headDim, batch = 1, scale }: Turn): Problem => ({
  batch,
  tokens,
  heads: heads[0],
  kvHeads: heads[1],
  headDim,
  scale: scale ?? 1 / Math.sqrt(headDim),
  attention: mask,
});

/** Standard normal inputs. */
export const inputsOf = (
  { tokens, heads: [heads, kvHeads], headDim, batch = 1 }: Turn,
): Inputs => ({
  q: normals(1, batch * tokens * heads * headDim),
  k: normals(2, batch * tokens * kvHeads * headDim),
  v: normals(3, batch * tokens * kvHeads * headDim),
});

/** What the oracle says, for K and V as they arrive. */
const expectedOf = (turn: Turn): Judgement => {
  const { q, k, v } = inputsOf(turn);
  const wire = turn.wire ?? "f32";
  const travelled = (x: Float32Array) => decode(wire, encode(wire, x));
  return denseAttention(judged(problemOf(turn)), q, travelled(k), travelled(v));
};

/** Attention of a turn over a ring; with gradients where a cotangent is given. */
export const solve = (turn: Turn, cotangent?: Float32Array) => {
  const { ring, layout, wire } = turn;
  return attend({
    ...problemOf(turn),
    ...inputsOf(turn),
    ...(cotangent === undefined ? {} : { cotangent }),
    layout,
    ring: typeof ring === "number" ? ring : ring.length,
    ...(typeof ring === "number" ? {} : { weights: ring }),
    ...(wire === undefined ? {} : { wire }),
  }).pipe(Effect.provide(Crew.local()));
};

/** The rows of two ranks that hold tokens, swapped: what a wrong order of shards would give. */
const swapped = (plan: Plan, { o, lse }: Judgement): Judgement | undefined => {
  const [one, other] = plan.ranks.filter(({ tokens }) => tokens > 0);
  if (one === undefined || other === undefined) return undefined;
  const { heads, headDim } = plan.problem;
  const width = heads * headDim;
  const wrong = o.slice();
  const [a, b] = [one.shard.flatMap(positionsOfSpan), other.shard.flatMap(positionsOfSpan)];
  a.slice(0, b.length).forEach((position, i) => {
    wrong.set(o.subarray(position * width, (position + 1) * width), b[i]! * width);
    wrong.set(o.subarray(b[i]! * width, (b[i]! + 1) * width), position * width);
  });
  return { o: wrong, lse };
};

/** Every row was written, and the ranks moved and held what the plan says. */
const assertComplete = ({ o, lse, plan, ranks }: AttendResult): void => {
  const { headDim } = plan.problem;
  for (let row = 0; row < o.length; row += headDim) {
    assert.ok(o.subarray(row, row + headDim).some((x) => x !== 0), `row ${row / headDim} is empty`);
  }
  assert.ok(lse.every(Number.isFinite), "a log-sum-exp is missing");
  assert.deepEqual(ranks.map(({ rank }) => rank), plan.ranks.map(({ rank }) => rank));
  ranks.forEach(({ rank, sentBytes, kvPeakBytes }) => {
    const planned = plan.ranks[rank]!;
    assert.equal(sentBytes, planned.sentBytes, `bytes sent by rank ${rank}`);
    assert.ok(
      kvPeakBytes <= planned.kvBytes,
      `rank ${rank} held ${kvPeakBytes} bytes of K/V, at most ${planned.kvBytes} are planned`,
    );
  });
};

/** Solves a turn, holds the result against the oracle, and gives it. */
const check = (turn: Turn) =>
  Effect.gen(function* () {
    const result = yield* solve(turn);
    const expected = expectedOf(turn);
    const bound = yield* DeviceBound;
    assertComplete(result);
    assertClose(result, expected, bound);
    const zeros = { o: expected.o.map(() => 0), lse: expected.lse };
    for (const wrong of [zeros, swapped(result.plan, expected)]) {
      if (wrong === undefined) continue;
      assert.throws(() => assertClose(wrong, expected, bound), "a wrong result would pass");
    }
    return result;
  });

// --- Shapes -------------------------------------------------------------------------------------

export const nameOf = (
  { ring, tokens, layout, mask, heads, headDim, batch = 1, scale, wire }: Turn,
) =>
  [
    `${typeof ring === "number" ? `ring of ${ring}` : `weights ${ring.join(":")}`}, ${layout}`,
    `${batch} × ${tokens} tokens`,
    namesOf(mask),
    `${heads.join("/")} heads of ${headDim}`,
    ...(scale === undefined ? [] : [`scale ${scale}`]),
    ...(wire === undefined ? [] : [`${wire} on the wire`]),
  ].join(", ");

/** Covers every value of every dimension, and the pairs that have gone wrong elsewhere. */
const turns: ReadonlyArray<Turn> = [
  { ring: 1, tokens: 31, layout: "contiguous", mask: full, heads: [8, 8], headDim: 64 },
  { ring: 1, tokens: 62, layout: "zigzag", mask: causal, heads: [6, 2], headDim: 80, batch: 2 },
  { ring: 2, tokens: 1, layout: "contiguous", mask: causal, heads: [8, 1], headDim: 16, batch: 2 },
  { ring: 2, tokens: 31, layout: "zigzag", mask: causal, heads: [6, 2], headDim: 80, batch: 3 },
  { ring: 2, tokens: 62, layout: "striped", mask: full, heads: [5, 5], headDim: 64 },
  { ring: 3, tokens: 2, layout: "striped", mask: full, heads: [8, 2], headDim: 8 },
  { ring: 3, tokens: 62, layout: "striped", mask: causal, heads: [8, 1], headDim: 128 },
  // Windows about as long as a shard: c − 1, c, c + 1 and 2c + 3.
  {
    ring: 3,
    tokens: 31,
    layout: "contiguous",
    mask: window(12),
    heads: [8, 8],
    headDim: 16,
    batch: 2,
  },
  { ring: 4, tokens: 31, layout: "contiguous", mask: window(7), heads: [8, 2], headDim: 64 },
  { ring: 4, tokens: 31, layout: "zigzag", mask: window(8), heads: [8, 2], headDim: 64 },
  { ring: 4, tokens: 31, layout: "striped", mask: window(9), heads: [8, 2], headDim: 64 },
  { ring: 4, tokens: 62, layout: "contiguous", mask: window(35), heads: [8, 2], headDim: 16 },
  { ring: 8, tokens: 257, layout: "zigzag", mask: window(69), heads: [6, 2], headDim: 8 },
  { ring: 5, tokens: 31, layout: "contiguous", mask: window(1), heads: [5, 5], headDim: 80 },
  { ring: 8, tokens: 31, layout: "striped", mask: window(40), heads: [5, 5], headDim: 16 },
  { ring: 4, tokens: 3, layout: "zigzag", mask: causal, heads: [5, 5], headDim: 8 },
  { ring: 4, tokens: 62, layout: "contiguous", mask: causal, heads: [6, 2], headDim: 256 },
  { ring: 5, tokens: 62, layout: "zigzag", mask: full, heads: [6, 2], headDim: 16, batch: 3 },
  { ring: 5, tokens: 257, layout: "striped", mask: causal, heads: [8, 1], headDim: 8 },
  { ring: 8, tokens: 7, layout: "striped", mask: causal, heads: [8, 8], headDim: 64 },
  { ring: 8, tokens: 31, layout: "zigzag", mask: causal, heads: [8, 2], headDim: 64, batch: 2 },
  { ring: 8, tokens: 62, layout: "contiguous", mask: full, heads: [8, 1], headDim: 16 },
  // Several blocks a shard.
  {
    ring: 2,
    tokens: 31,
    layout: "contiguous",
    mask: causal,
    heads: [8, 8],
    headDim: 256,
    batch: 3,
  },
  { ring: 3, tokens: 31, layout: "striped", mask: causal, heads: [8, 8], headDim: 256, batch: 3 },
  // Unlike ranks, some without tokens.
  {
    ring: [3, 0, 1, 2],
    tokens: 62,
    layout: "contiguous",
    mask: causal,
    heads: [8, 2],
    headDim: 16,
  },
  { ring: [1, 2.5, 0], tokens: 62, layout: "zigzag", mask: causal, heads: [8, 2], headDim: 16 },
  {
    ring: [0, 1, 5, 2],
    tokens: 62,
    layout: "striped",
    mask: window(9),
    heads: [8, 2],
    headDim: 16,
  },
  { ring: 3, tokens: 31, layout: "zigzag", mask: causal, heads: [8, 2], headDim: 64, scale: 0.3 },
  { ring: 3, tokens: 31, layout: "zigzag", mask: causal, heads: [8, 2], headDim: 64, wire: "f16" },
  {
    ring: 4,
    tokens: 31,
    layout: "striped",
    mask: full,
    heads: [8, 2],
    headDim: 16,
    batch: 2,
    wire: "bf16",
  },
];

const shapes: ReadonlyArray<RingCase> = turns.map((turn) => ({
  name: nameOf(turn),
  run: Effect.asVoid(check(turn)),
}));

const anyTurn = fc.record({
  ring: fc.oneof(
    fc.integer({ min: 1, max: 8 }),
    fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 6 })
      .filter((weights) => weights.some((weight) => weight > 0)),
  ),
  tokens: fc.integer({ min: 1, max: 40 }),
  layout: fc.constantFrom(...layouts),
  mask: fc.oneof(
    fc.constant(full),
    fc.constant(causal),
    fc.integer({ min: 1, max: 45 }).map(window),
  ),
  heads: fc.constantFrom([1, 1], [4, 2], [6, 2], [3, 1] as const) as fc.Arbitrary<[number, number]>,
  headDim: fc.constantFrom(8, 16),
  batch: fc.integer({ min: 1, max: 2 }),
  wire: fc.constantFrom<DType>("f32", "f16", "bf16"),
});

const anything: RingCase = {
  name: "any small problem on any ring",
  run: Effect.gen(function* () {
    const services = yield* Effect.context<Device | Links>();
    const holds = fc.asyncProperty(
      anyTurn,
      (turn) => Effect.runPromiseWith(services)(Effect.asVoid(check(turn))),
    );
    yield* Effect.promise(() => fc.assert(holds, { numRuns: 25 }));
  }),
};

// --- What must not matter -----------------------------------------------------------------------

const ringSize: RingCase = {
  name: "the error does not grow with the ring",
  run: Effect.gen(function* () {
    const turn: Turn = {
      ring: 1,
      tokens: 62,
      layout: "contiguous",
      mask: full,
      heads: [8, 2],
      headDim: 64,
    };
    const expected = expectedOf(turn);
    const [one, eight] = [yield* solve(turn), yield* solve({ ...turn, ring: 8 })]
      .map(({ o }) => relativeL2(o, expected.o));
    // The rounding of the result alone is 3e-8.
    assert.ok(eight! <= 1.5 * one! + 1e-7, `${eight} with 8 ranks, ${one} with 1`);
  }),
};

const anyLayout: RingCase = {
  name: "the layout changes nothing",
  run: Effect.gen(function* () {
    const bound = yield* DeviceBound;
    for (const mask of [causal, window(11), full]) {
      const results = yield* Effect.forEach(
        layouts,
        (layout) => solve({ ring: 4, tokens: 31, layout, mask, heads: [6, 2], headDim: 16 }),
      );
      for (const { o, lse } of results) {
        assert.ok(relativeL2(o, results[0]!.o) <= bound.o, `o of ${namesOf(mask)}`);
        assert.ok(maxAbs(lse, results[0]!.lse) <= bound.lse, `lse of ${namesOf(mask)}`);
      }
    }
  }),
};

/** The same links, on which every frame takes another while to be sent and to be taken. */
export const jittery = (links: Links["Service"], seed: number): Links["Service"] => {
  const next = uniform(seed);
  const dawdle = Effect.suspend(() =>
    Effect.repeat(Effect.yieldNow, { times: Math.floor(20 * next() ** 3) })
  );
  return {
    ...links,
    open: (ends) =>
      Effect.map(links.open(ends), (link) => ({
        ...link,
        send: (frame) => Effect.andThen(dawdle, link.send(frame)),
        receive: Effect.andThen(dawdle, link.receive),
      })),
  };
};

const timing: RingCase = {
  name: "the bits are the same in every run, whatever arrives when",
  run: Effect.gen(function* () {
    const links = yield* Links;
    const turn: Turn = {
      ring: 5,
      tokens: 62,
      layout: "zigzag",
      mask: causal,
      heads: [8, 2],
      headDim: 16,
    };
    const first = yield* check(turn);
    for (const seed of [0, 1, 2, 3]) {
      const { o, lse } = yield* solve(turn).pipe(
        seed === 0 ? (same) => same : Effect.provideService(Links, jittery(links, seed)),
      );
      assert.ok(sameNumbers(o, first.o) && sameNumbers(lse, first.lse), `run ${seed} differs`);
    }
  }),
};

const smallFrames: RingCase = {
  name: "frames shorter than a row",
  run: Effect.gen(function* () {
    const links = yield* Links;
    for (const maxFrame of [headerBytes + 8, headerBytes + 1000]) {
      yield* check({
        ring: 3,
        tokens: 7,
        layout: "zigzag",
        mask: causal,
        heads: [4, 2],
        headDim: 8,
        batch: 2,
      }).pipe(Effect.provideService(Links, { ...links, maxFrame }));
    }
  }),
};

const allGather: RingCase = {
  name: "every rank's rows are those of its queries against all keys at once",
  run: Effect.gen(function* () {
    const bound = yield* DeviceBound;
    const shapes: ReadonlyArray<readonly [Layout, Mask]> = [
      ["contiguous", full],
      ["zigzag", causal],
      ["striped", window(13)],
    ];
    for (const [layout, mask] of shapes) {
      const turn: Turn = { ring: 3, tokens: 62, layout, mask, heads: [8, 2], headDim: 64 };
      const result = yield* solve(turn);
      for (const { shard } of result.plan.ranks) {
        const cut = {
          problem: problemOf(turn),
          inputs: inputsOf(turn),
          queries: shard,
          blocks: [[stretch(0, turn.tokens)]],
        };
        assertClose(rowsOf(cut, result), yield* attendAtOnce(cut), bound);
      }
    }
  }),
};

// --- What must not pass -------------------------------------------------------------------------

/** Links with a fault in what `from` sends to `to`. */
const faultyBetween = (
  links: Links["Service"],
  from: Slot,
  to: Slot,
  fault: Fault,
): Links["Service"] => {
  const faulty = faultyLinks(links, fault);
  return {
    ...links,
    open: (ends) => ends.self === from && ends.peer === to ? faulty.open(ends) : links.open(ends),
  };
};

const faults: ReadonlyArray<RingCase> = faultKinds.map((kind) => ({
  name: `a frame that links ${kind} ends the run`,
  run: Effect.gen(function* () {
    // Every transfer has frames behind those that are hit: nothing but a link can miss the last one.
    const links = { ...(yield* Links), maxFrame: headerBytes + 64 };
    const turn: Turn = {
      ring: 3,
      tokens: 24,
      layout: "contiguous",
      mask: full,
      heads: [2, 2],
      headDim: 8,
    };
    for (const [from, to] of [["driver", 1], [0, 1], [1, "driver"]] as const) {
      for (const at of [0, 3, 6]) {
        const result = yield* solve(turn).pipe(
          Effect.provideService(Links, faultyBetween(links, from, to, { kind, at })),
          Effect.result,
        );
        const where = `frame ${at} from ${from} to ${to}`;
        assert.ok(Result.isFailure(result), `${where}: there is a result`);
        const error = result.failure;
        if (to === "driver") {
          assert.equal(error._tag, "FrameRejected", where);
        } else {
          assert.ok(error._tag === "RankFailed", where);
          assert.deepEqual([error.rank, error.tag], [to, "FrameRejected"], where);
        }
      }
    }
  }),
}));

/** Every promise of the contract. */
export const ringCases: ReadonlyArray<RingCase> = [
  smallFrames,
  ...faults,
  ...shapes,
  anything,
  ringSize,
  anyLayout,
  timing,
  allGather,
];

/** What turns a ring, and how close to float64 it comes; 2e-6 and 1e-5 unless told. */
export interface RingUnderTest {
  readonly device: Layer.Layer<Device, unknown>;
  readonly links: Layer.Layer<Links, unknown>;
  readonly bound?: DeviceBound;
  /** Why this ring cannot turn here. */
  readonly ignore?: string | undefined;
  /** Which contract: that of attention unless told. */
  readonly contract?: { readonly name: string; readonly cases: ReadonlyArray<RingCase> };
}

/** Registers the contract as one test of this pair, with a step for each case. */
export const testRing = (
  name: string,
  { device, links, bound, ignore, contract = { name: "the contract", cases: ringCases } }:
    RingUnderTest,
): void => {
  const suffix = ignore === undefined ? "" : ` (not here: ${ignore})`;
  Deno.test({
    name: `a ring on ${name} keeps ${contract.name}${suffix}`,
    ignore: ignore !== undefined,
    fn: async (test) => {
      const runtime = ManagedRuntime.make(Layer.mergeAll(device, links));
      try {
        for (const { name, run } of contract.cases) {
          await test.step({
            name,
            // Device and links outlive a step; the whole test is held to leave nothing open.
            sanitizeOps: false,
            sanitizeResources: false,
            fn: () =>
              runtime.runPromise(
                bound === undefined ? run : Effect.provideService(run, DeviceBound, bound),
              ),
          });
        }
      } finally {
        await runtime.dispose();
      }
    },
  });
};
