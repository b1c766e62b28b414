/**
 * The contract of a device's backward pass. A plugin's test is one call of `testGradients`. Everything is compared with
 * the float64 oracle for a random cotangent.
 *
 * @module
 */
import { namesOf } from "../../runtime/attention.ts";
import { Effect } from "effect";
import assert from "node:assert/strict";
import { Device } from "../../runtime/device.ts";
import { decode, encode } from "../../runtime/dtype.ts";
import { relativeL2, sameNumbers } from "../support/closeness.ts";
import { type Cut, stretch, stretches } from "../support/cut.ts";
import {
  absorbBackward,
  assertGradients,
  beginBackward,
  checkGradients,
  expectedGradients,
  GradientBound,
  gradientsOf,
} from "../support/cut_backward.ts";
import {
  type DeviceCase,
  type DeviceUnderTest,
  inputsOf,
  layouts,
  problem,
  testDevice,
  whole,
} from "./device.ts";
import { causal, full, type Mask, window, withoutAttention } from "../support/masks.ts";

const checkEach = (cuts: Iterable<Cut>): DeviceCase["run"] =>
  Effect.forEach(cuts, checkGradients, { discard: true });

const heads: ReadonlyArray<DeviceCase> = [[8, 8], [8, 2], [6, 2], [5, 5], [8, 1]]
  .map(([heads, kvHeads]) => ({
    name: `${heads} query heads share ${kvHeads} key heads`,
    run: checkGradients(whole(problem({ heads: heads!, kvHeads: kvHeads! }))),
  }));

const headDims: ReadonlyArray<DeviceCase> = [8, 64, 80, 128, 256].map((headDim) => ({
  name: `head dim ${headDim}`,
  run: checkGradients(whole(problem({ headDim }))),
}));

const lengths: ReadonlyArray<DeviceCase> = [[3, 2], [1, 31], [3, 62], [1, 257]]
  .map(([batch, tokens]) => ({
    name: `batch ${batch} of ${tokens} tokens`,
    run: checkGradients(whole(problem({ batch: batch!, tokens: tokens! }))),
  }));

const masks: ReadonlyArray<DeviceCase> = ([
  full,
  causal,
  ...[28, 29, 30, 61, 4000].map(window),
] satisfies Array<Mask>).map((mask) => ({
  name: `${namesOf(mask)} over blocks of 29`,
  run: checkGradients(
    whole(problem({ tokens: 100, attention: mask }), { lengths: [29, 29, 29, 13] }),
  ),
}));

const scale: DeviceCase = {
  name: "the scale is the caller's",
  run: checkGradients(whole(problem({ scale: 0.3 }))),
};

const oneKey: DeviceCase = {
  name: "rows that see one key alone have no gradient but that of its value",
  run: Effect.gen(function* () {
    const cut = whole(problem({ attention: window(1) }));
    const { dq, dk, dv } = yield* gradientsOf(cut);
    const expected = expectedGradients(cut);
    assert.ok(relativeL2(dv, expected.dv) <= (yield* GradientBound));
    const most = Math.max(...[dq, dk].flatMap((x) => Array.from(x, Math.abs)));
    assert.ok(most <= 2e-5, `${most} is not the rounding of zero`);
  }),
};

const rings: ReadonlyArray<DeviceCase> = Object.entries(layouts).map(([layout, shards]) => ({
  name: `every rank of a ring of 3, ${layout}`,
  run: checkEach(([causal, window(20), full] as Array<Mask>)
    .flatMap((mask) => {
      const cut = whole(problem({ tokens: 131, attention: mask }));
      return shards.map((queries, rank) => ({
        ...cut,
        queries,
        blocks: shards.map((_, step) => shards[(rank - step + 3) % 3]!),
      }));
    })),
}));

const formats: ReadonlyArray<DeviceCase> = (["f16", "bf16"] as const).map((dtype) => ({
  name: `${dtype} inputs, float32 arithmetic`,
  run: Effect.suspend(() => {
    const cut = whole(problem({ tokens: 131, batch: 2 }), { dtype, lengths: [62, 69] });
    const round = (x: Float32Array) => decode(dtype, encode(dtype, x));
    const { q, k, v } = cut.inputs;
    return checkGradients({ ...cut, inputs: { q: round(q), k: round(k), v: round(v) } });
  }),
}));

const manyBlocks: DeviceCase = {
  name: "many small blocks are as exact as one",
  run: checkEach(
    [[157], Array(52).fill(3).concat(1)].map((lengths) =>
      whole(problem({ tokens: 157 }), { lengths })
    ),
  ),
};

const besideKeys: DeviceCase = {
  name: "rows that begin one after the keys, of a small head",
  run: checkGradients(
    whole(problem({ tokens: 403, heads: 1, kvHeads: 1, headDim: 8, attention: window(30) }), {
      queries: [stretch(1, 403)],
    }),
  ),
};

const longBlock: DeviceCase = {
  name: "a long block with a window, sizes that are multiples of nothing",
  run: Effect.suspend(() => {
    const shape = problem({
      tokens: 701,
      heads: 2,
      kvHeads: 1,
      attention: window(397),
    });
    return checkGradients(whole(shape, { lengths: [699, 2] }));
  }),
};

const twoStretches: DeviceCase = {
  name: "a long block of two stretches",
  run: Effect.suspend(() => {
    const shape = problem({ tokens: 1100, heads: 2, kvHeads: 1, attention: causal });
    const mine = [stretch(330, 400), stretch(900, 1100)];
    const others = [stretch(0, 330), stretch(400, 900)];
    return checkGradients(whole(shape, { queries: mine, blocks: [others, mine] }));
  }),
};

const partOfRows: DeviceCase = {
  name: "spans that begin in the middle of a run",
  run: checkGradients({
    ...whole(problem({ tokens: 131 })),
    queries: [{ start: 3, run: 3, stride: 7, first: 2, count: 40 }],
    blocks: [
      [{ start: 0, run: 3, stride: 7, first: 0, count: 20 }],
      [{ start: 0, run: 3, stride: 7, first: 20, count: 37 }],
      [{ start: 3, run: 4, stride: 7, first: 0, count: 10 }],
      [{ start: 3, run: 4, stride: 7, first: 10, count: 64 }],
    ],
  }),
};

const emptyShard: DeviceCase = {
  name: "a shard without tokens",
  run: Effect.gen(function* () {
    const cut = whole(problem(), { queries: [] });
    const backward = yield* beginBackward(cut);
    const gradients = yield* absorbBackward(cut, backward, cut.blocks[0]!);
    assert.ok(gradients.every((x) => x === 0));
    assert.equal((yield* backward.finish).length, 0);
  }).pipe(Effect.scoped),
};

const blindRows: DeviceCase = {
  name: "a block of which no pair counts gives zeros, and rows that see nothing have a dq of zero",
  run: Effect.gen(function* () {
    const [batch, tokens, heads, headDim, from] = [2, 62, 4, 64, 17];
    const cut = whole(problem({ batch, tokens, heads, headDim }), {
      blocks: [[stretch(from, tokens)]],
    });
    const backward = yield* beginBackward(cut);
    const none = yield* absorbBackward(cut, backward, cut.blocks[0]!, []);
    assert.ok(none.every((x) => x === 0));
    yield* absorbBackward(cut, backward, cut.blocks[0]!);
    const dq = yield* backward.finish;
    for (let b = 0; b < batch; b++) {
      const at = b * tokens * heads * headDim;
      assert.ok(dq.subarray(at, at + from * heads * headDim).every((x) => x === 0));
      const seen = dq.subarray(at + from * heads * headDim, at + tokens * heads * headDim);
      assert.ok(seen.every((x) => Number.isFinite(x)) && seen.some((x) => x !== 0));
    }
  }).pipe(Effect.scoped),
};

const lostRows: DeviceCase = {
  name: "rows that have lost their log-sum-exp are refused",
  run: Effect.gen(function* () {
    const cut = whole(problem({ tokens: 31 }));
    const { problem: { heads, headDim } } = cut;
    for (const lost of [NaN, Infinity]) {
      const device = yield* Device;
      const zeros = new Float32Array(31 * heads * headDim);
      const refusal = yield* device.beginBackward!(
        { ...withoutAttention(cut.problem), dtype: "f32", bytes: encode("f32", zeros) },
        {
          o: zeros,
          lse: new Float32Array(31 * heads).with(31 + 10, lost),
          cotangent: zeros,
        },
      ).pipe(Effect.flip, Effect.orDie);
      assert.match(refusal.message, new RegExp(`log-sum-exp of each row, and row 10 has ${lost}`));
    }
  }).pipe(Effect.scoped),
};

const misfits: DeviceCase = {
  name: "an outcome of another size than the queries is refused",
  run: Effect.gen(function* () {
    const { problem: { heads, headDim }, problem: shape } = whole(problem({ tokens: 31 }));
    const device = yield* Device;
    const zeros = new Float32Array(31 * heads * headDim);
    const outcome = { o: zeros, lse: new Float32Array(31 * heads), cotangent: zeros };
    for (const [name, words] of [["o", "o"], ["lse", "lse"], ["cotangent", "dO"]] as const) {
      const refusal = yield* device.beginBackward!(
        { ...withoutAttention(shape), dtype: "f32", bytes: encode("f32", zeros) },
        { ...outcome, [name]: outcome[name].subarray(1) },
      ).pipe(Effect.flip, Effect.orDie);
      const size = outcome[name].byteLength;
      assert.match(
        refusal.message,
        new RegExp(`a shard's ${words} of ${size} bytes was announced, ${size - 4} came`),
      );
      const wide = new Float64Array(outcome[name].length / 2) as unknown as Float32Array;
      const { message } = yield* device.beginBackward!(
        { ...withoutAttention(shape), dtype: "f32", bytes: encode("f32", zeros) },
        { ...outcome, [name]: wide },
      ).pipe(Effect.flip, Effect.orDie);
      assert.match(message, new RegExp(`a shard's ${words} must be float32`));
    }
    const { message } = yield* device.beginBackward!(
      { ...withoutAttention(shape), headDim: 6, dtype: "f32", bytes: encode("f32", zeros) },
      outcome,
    ).pipe(Effect.flip, Effect.orDie);
    assert.match(message, /head dim must be a multiple of 4 from 4 to 256: found 6/);
  }).pipe(Effect.scoped),
};

const largeLogits: DeviceCase = {
  name: "inputs times 4",
  run: Effect.suspend(() => {
    const shape = problem({ tokens: 131, heads: 8 });
    const cut = whole(shape, { lengths: [20, 51, 60], inputs: inputsOf(shape, 4) });
    // Scores of size s make P wrong by s · 2⁻²⁴ in any float32 arithmetic.
    return Effect.gen(function* () {
      assertGradients(yield* gradientsOf(cut), expectedGradients(cut), 4e-5);
    });
  }),
};

const queued: DeviceCase = {
  name: "a block that is queued before the last one is done changes nothing",
  run: Effect.gen(function* () {
    const cut = whole(problem({ tokens: 131 }), { blocks: stretches([20, 51, 60]) });
    const alone = yield* gradientsOf(cut);
    const backward = yield* beginBackward(cut);
    const all = yield* Effect.all(
      cut.blocks.map((block) => absorbBackward(cut, backward, block)),
      { concurrency: 2 },
    );
    const half = (x: Float32Array, i: number) =>
      x.subarray(i * x.length / 2, (i + 1) * x.length / 2);
    assert.ok(sameNumbers(all.flatMap((x) => Array.from(half(x, 0))), alone.dk));
    assert.ok(sameNumbers(all.flatMap((x) => Array.from(half(x, 1))), alone.dv));
    assert.ok(sameNumbers(yield* backward.finish, alone.dq));
  }).pipe(Effect.scoped),
};

const interleaved: DeviceCase = {
  name: "two backward passes do not disturb each other",
  run: Effect.gen(function* () {
    const ours = whole(problem({ tokens: 131 }), { lengths: [20, 51, 60] });
    const theirs = whole(problem({ heads: 6, attention: full }), { lengths: [7, 40, 15] });
    const [a, b] = [yield* beginBackward(ours), yield* beginBackward(theirs)];
    for (let i = 0; i < 3; i++) {
      yield* Effect.all([
        absorbBackward(ours, a, ours.blocks[i]!),
        absorbBackward(theirs, b, theirs.blocks[i]!),
      ], { concurrency: "unbounded" });
    }
    assert.ok(sameNumbers(yield* a.finish, (yield* gradientsOf(ours)).dq));
    assert.ok(sameNumbers(yield* b.finish, (yield* gradientsOf(theirs)).dq));
  }).pipe(Effect.scoped),
};

/** Every promise of the contract. */
export const gradientCases: ReadonlyArray<DeviceCase> = [
  ...heads,
  ...headDims,
  ...lengths,
  ...masks,
  scale,
  oneKey,
  ...rings,
  partOfRows,
  ...formats,
  manyBlocks,
  besideKeys,
  longBlock,
  twoStretches,
  emptyShard,
  blindRows,
  lostRows,
  misfits,
  largeLogits,
  queued,
  interleaved,
];

/** Registers the contract of the backward pass as one test of this plugin. */
export const testGradients = (
  plugin: Parameters<typeof testDevice>[0],
  options: Omit<DeviceUnderTest, "bound" | "contract"> = {},
): void =>
  testDevice(plugin, {
    ...options,
    contract: { name: "the contract of gradients", cases: gradientCases },
  });
