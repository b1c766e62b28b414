/**
 * The contract of a whole ring's gradients: what `attend` must give for a random cotangent, over any device and any
 * links. A pair's test is one call of `testRingGradients`.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { denseGradients } from "../../kernels/oracle.ts";
import type { AttendResult } from "../../runtime/attend.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import { headerBytes } from "../../runtime/frame.ts";
import { layouts } from "../../runtime/layout.ts";
import { type Ends, Links } from "../../runtime/link.ts";
import { relativeL2, sameNumbers } from "../support/closeness.ts";
import { assertGradients, GradientBound } from "../support/cut_backward.ts";
import { normals } from "../support/random.ts";
import { positionsOfSpan } from "../support/spans.ts";
import {
  inputsOf,
  jittery,
  nameOf,
  problemOf,
  type RingCase,
  type RingUnderTest,
  solve,
  testRing,
  type Turn,
} from "./ring.ts";
import { causal, full, judged, window } from "../support/masks.ts";

const cotangentOf = ({ tokens, heads: [heads], headDim, batch = 1 }: Turn): Float32Array =>
  normals(4, batch * tokens * heads * headDim);

const expectedOf = (turn: Turn) => {
  const { q, k, v } = inputsOf(turn);
  const wire = turn.wire ?? "f32";
  const travelled = (x: Float32Array) => decode(wire, encode(wire, x));
  return denseGradients(judged(problemOf(turn)), q, travelled(k), travelled(v), cotangentOf(turn));
};

const gradientsOf = (result: AttendResult) => {
  assert.ok(result.gradients !== undefined, "there are no gradients");
  return result.gradients;
};

/** K/V and gradients moved as far as the plan says: N − 1 hops each at the most. */
const assertHops = ({ plan, ranks }: AttendResult): void => {
  for (const { rank, sentBytes, sentGradientBytes } of ranks) {
    const planned = plan.ranks[rank]!;
    assert.equal(
      sentBytes,
      2 * planned.sentBytes,
      `bytes of K/V that rank ${rank} sent in two passes`,
    );
    const passedOn = planned.homing.filter(({ to }) => to !== undefined);
    const bytes = passedOn.reduce((sum, { block }) => sum + block.gradientBytes, 0);
    assert.equal(sentGradientBytes, bytes, `bytes of gradients that rank ${rank} sent`);
  }
};

/** dk of the first two ranks that hold tokens, swapped: what came home to the wrong rank. */
const swapped = ({ plan }: AttendResult, dk: Float64Array): Float64Array | undefined => {
  const [one, other] = plan.ranks.filter(({ tokens }) => tokens > 0);
  if (one === undefined || other === undefined) return undefined;
  const width = plan.problem.kvHeads * plan.problem.headDim;
  const wrong = dk.slice();
  const [a, b] = [one.shard.flatMap(positionsOfSpan), other.shard.flatMap(positionsOfSpan)];
  a.slice(0, b.length).forEach((position, i) => {
    wrong.set(dk.subarray(position * width, (position + 1) * width), b[i]! * width);
    wrong.set(dk.subarray(b[i]! * width, (b[i]! + 1) * width), position * width);
  });
  return wrong;
};

const check = (turn: Turn) =>
  Effect.gen(function* () {
    const result = yield* solve(turn, cotangentOf(turn));
    const expected = expectedOf(turn);
    const bound = yield* GradientBound;
    assertGradients(gradientsOf(result), expected, bound);
    const zeros = expected.dq.map(() => 0);
    assert.throws(() => assertGradients({ ...expected, dq: zeros }, expected, bound));
    const wrong = swapped(result, expected.dk);
    if (wrong !== undefined) assert.ok(relativeL2(wrong, expected.dk) > bound);
    assertHops(result);
    return result;
  });

/** Every ring size with every layout; heads, head dims, masks and lengths take turns. */
const turns: ReadonlyArray<Turn> = [1, 2, 3, 5, 8].flatMap((ring, i) =>
  layouts.map((layout, j): Turn => {
    const pick = <A>(...values: ReadonlyArray<A>): A => values[(i + j) % values.length]!;
    return {
      ring,
      layout,
      tokens: [62, 31, 97][(2 * i + j) % 3]!,
      mask: pick(causal, full, causal, window(20), causal),
      heads: pick<readonly [number, number]>([8, 2], [5, 5], [6, 2], [8, 1]),
      headDim: [16, 64, 80, 8][(i + 2 * j) % 4]!,
      batch: 1 + (i + j) % 2,
    };
  })
);

const more: ReadonlyArray<Turn> = [
  // Fewer tokens than ranks, ranks without tokens, several blocks a shard, and what travels in half precision.
  { ring: 5, layout: "zigzag", tokens: 4, mask: causal, heads: [4, 2], headDim: 16 },
  {
    ring: [3, 0, 1, 2],
    layout: "contiguous",
    tokens: 62,
    mask: causal,
    heads: [8, 2],
    headDim: 16,
  },
  { ring: 3, layout: "striped", tokens: 31, mask: causal, heads: [8, 8], headDim: 256, batch: 3 },
  { ring: 4, layout: "contiguous", tokens: 62, mask: window(9), heads: [4, 2], headDim: 16 },
  { ring: 3, layout: "zigzag", tokens: 31, mask: causal, heads: [8, 2], headDim: 64, wire: "f16" },
  { ring: 3, layout: "zigzag", tokens: 31, mask: causal, heads: [8, 2], headDim: 64, scale: 0.3 },
];

const shapes: ReadonlyArray<RingCase> = [...turns, ...more].map((turn) => ({
  name: nameOf(turn),
  run: Effect.asVoid(check(turn)),
}));

const ringSize: RingCase = {
  name: "the error does not grow with the ring",
  run: Effect.gen(function* () {
    const turn = {
      tokens: 96,
      layout: "zigzag",
      mask: causal,
      heads: [4, 2],
      headDim: 64,
    } as const;
    const errors: Array<number> = [];
    const expected = expectedOf({ ...turn, ring: 1 });
    for (const ring of [1, 8]) {
      const { dq, dk } = gradientsOf(
        yield* solve({ ...turn, ring }, cotangentOf({ ...turn, ring })),
      );
      errors.push(Math.max(relativeL2(dq, expected.dq), relativeL2(dk, expected.dk)));
    }
    // The rounding of the sums of eight float32 shares is 1e-7.
    assert.ok(
      errors[1]! <= 1.5 * errors[0]! + 2e-7,
      `${errors[1]} with 8 ranks, ${errors[0]} with 1`,
    );
  }),
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
    const first = gradientsOf(yield* check(turn));
    for (const seed of [1, 2, 3]) {
      const again = gradientsOf(
        yield* solve(turn, cotangentOf(turn)).pipe(
          Effect.provideService(Links, jittery(links, seed)),
        ),
      );
      for (const name of ["dq", "dk", "dv"] as const) {
        assert.ok(sameNumbers(again[name], first[name]), `${name} of run ${seed} differs`);
      }
    }
  }),
};

const smallFrames: RingCase = {
  name: "frames shorter than a row",
  run: Effect.gen(function* () {
    const links = yield* Links;
    const turn: Turn = {
      ring: 3,
      tokens: 7,
      layout: "zigzag",
      mask: causal,
      heads: [4, 2],
      headDim: 8,
      batch: 2,
    };
    for (const maxFrame of [headerBytes + 8, headerBytes + 1000]) {
      yield* check(turn).pipe(Effect.provideService(Links, { ...links, maxFrame }));
    }
  }),
};

/** Counts the frames of each kind between ranks, by block. */
const counting = (links: Links["Service"], counts: Map<string, number>): Links["Service"] => ({
  ...links,
  open: (ends: Ends) =>
    Effect.map(links.open(ends), (link) => ({
      ...link,
      send: (frame) =>
        Effect.suspend(() => {
          if (ends.self !== "driver" && ends.peer !== "driver") {
            const view = new DataView(frame.buffer, frame.byteOffset);
            const key = `${view.getUint16(6, true)} ${view.getUint32(24, true)}`;
            counts.set(key, (counts.get(key) ?? 0) + 1);
          }
          return link.send(frame);
        }),
    })),
});

const hops: RingCase = {
  name: "a block's K and V take N − 1 hops in each pass, and its gradients N − 1 hops home",
  run: Effect.gen(function* () {
    const links = yield* Links;
    for (const ring of [2, 3, 5, 8]) {
      const counts = new Map<string, number>();
      const turn: Turn = {
        ring,
        tokens: 4 * ring + 1,
        layout: "zigzag",
        mask: full, // a causal one needs fewer hops of the blocks near the end
        heads: [2, 1],
        headDim: 8,
      };
      const { plan } = yield* solve(turn, cotangentOf(turn)).pipe(
        Effect.provideService(Links, counting(links, counts)),
      );
      // Small blocks travel in one frame each; three kinds of them go from rank to rank.
      assert.deepEqual([...counts.values()], Array(3 * plan.blocks.length).fill(ring - 1));
    }
  }),
};

const none: RingCase = {
  name: "without a cotangent there are no gradients, and nothing of them travels",
  run: Effect.gen(function* () {
    const turn: Turn = { ...turns[4]!, ring: 3 };
    const { gradients, ranks, plan } = yield* solve(turn);
    assert.equal(gradients, undefined);
    assert.ok(ranks.every(({ sentGradientBytes }) => sentGradientBytes === 0));
    assert.deepEqual(
      ranks.map(({ sentBytes }) => sentBytes),
      plan.ranks.map(({ sentBytes }) => sentBytes),
    );
  }),
};

/** Every promise of the contract. */
export const ringGradientCases: ReadonlyArray<RingCase> = [
  ...shapes,
  smallFrames,
  ringSize,
  timing,
  hops,
  none,
];

/** Registers the contract of gradients as one test of this pair. */
export const testRingGradients = (
  name: string,
  ring: Omit<RingUnderTest, "bound" | "contract">,
): void =>
  testRing(name, {
    ...ring,
    contract: { name: "the contract of gradients", cases: ringGradientCases },
  });
