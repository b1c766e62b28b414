/**
 * The contract of a device: what any `DevicePlugin` must compute, whatever runs it. A plugin's test is one call of
 * `testDevice`. Everything is compared with the float64 oracle; where logits are large, float32 itself is off, and
 * the error of plain float32 attention is the yardstick.
 *
 * @module
 */
import { Effect, ManagedRuntime } from "effect";
import assert from "node:assert/strict";
import { denseAttention } from "../../kernels/oracle.ts";
import { namesOf } from "../../runtime/attention.ts";
import type { Problem } from "../../runtime/plan.ts";
import { Device } from "../../runtime/device.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { DeviceFailed } from "../../runtime/errors.ts";
import type { Attended } from "../../runtime/kernel.ts";
import type { DevicePlugin } from "../../runtime/plugin.ts";
import { maxAbs, relativeL2, sameNumbers } from "../support/closeness.ts";
import {
  absorb,
  attend,
  begin,
  check,
  checkAgainstFloat32,
  type Cut,
  DeviceBound,
  type Inputs,
  stretch,
  stretches,
  type Tokens,
  unaligned,
} from "../support/cut.ts";
import { normals, uniform } from "../support/random.ts";
import { bandOf, causal, full, judged, type Mask, window } from "../support/masks.ts";

/** One promise of the contract; fails by `assert`. */
export interface DeviceCase {
  readonly name: string;
  readonly run: Effect.Effect<void, DeviceFailed, Device>;
}

/** A small problem, to be changed where a case is about something. */
export const problem = (changes: Partial<Problem> = {}): Problem => {
  const headDim = changes.headDim ?? 64;
  const scale = 1 / Math.sqrt(headDim);
  return {
    batch: 1,
    tokens: 62,
    heads: 4,
    kvHeads: 2,
    headDim,
    scale,
    attention: causal,
    ...changes,
  };
};

/** Standard normal inputs, times `factor`. */
export const inputsOf = (
  { batch, tokens, heads, kvHeads, headDim }: Problem,
  factor = 1,
): Inputs => {
  const [queries, keys] = [batch * tokens * heads * headDim, batch * tokens * kvHeads * headDim];
  const [q, k, v] = [queries, keys, keys].map((count, i) => normals(i + 1, count));
  return {
    q: q!.map((x) => x * factor),
    k: k!.map((x) => x * factor),
    v: v!.map((x) => x * factor),
  };
};

/** All queries against the keys in stretches of these lengths; half and half unless told. */
export const whole = (
  problem: Problem,
  {
    lengths = [problem.tokens >> 1, problem.tokens - (problem.tokens >> 1)],
    ...rest
  }: Partial<Cut> & { readonly lengths?: ReadonlyArray<number> } = {},
): Cut => ({
  problem,
  inputs: inputsOf(problem),
  queries: [stretch(0, problem.tokens)],
  blocks: stretches(lengths.filter((length) => length > 0)),
  ...rest,
});

const assertSame = (a: Attended, b: Attended): void => {
  assert.ok(sameNumbers(a.o, b.o), "o differs");
  assert.ok(sameNumbers(a.lse, b.lse), "lse differs");
};

const checkEach = (cuts: Iterable<Cut>): DeviceCase["run"] =>
  Effect.forEach(cuts, check, { discard: true });

// --- Shapes -------------------------------------------------------------------------------------

const heads: ReadonlyArray<DeviceCase> = [[8, 8], [8, 2], [6, 2], [5, 5], [8, 1]]
  .map(([heads, kvHeads]) => ({
    name: `${heads} query heads share ${kvHeads} key heads`,
    run: check(whole(problem({ heads: heads!, kvHeads: kvHeads! }))),
  }));

const headDims: ReadonlyArray<DeviceCase> = [8, 16, 64, 80, 96, 128, 256].map((headDim) => ({
  name: `head dim ${headDim}`,
  run: check(whole(problem({ headDim }))),
}));

const lengths: ReadonlyArray<DeviceCase> = [[1, 1], [3, 1], [1, 31], [2, 31], [3, 62], [1, 257]]
  .map(([batch, tokens]) => ({
    name: `batch ${batch} of ${tokens} tokens`,
    run: check(whole(problem({ batch: batch!, tokens: tokens! }))),
  }));

const masks: ReadonlyArray<DeviceCase> = ([
  full,
  causal,
  ...[1, 28, 29, 30, 61, 100, 4000].map(window),
] satisfies Array<Mask>).map((mask) => ({
  name: `${namesOf(mask)} over blocks of 29`,
  run: check(whole(problem({ tokens: 100, attention: mask }), { lengths: [29, 29, 29, 13] })),
}));

const scale: DeviceCase = {
  name: "the scale is the caller's",
  run: check(whole(problem({ scale: 0.3 }))),
};

// --- Cuts ---------------------------------------------------------------------------------------

const orders: DeviceCase = {
  name: "the order of blocks changes nothing",
  run: Effect.gen(function* () {
    const cut = whole(problem({ tokens: 157 }), { lengths: [1, 62, 31, 63] });
    const [a, b, c, d] = cut.blocks as [Tokens, Tokens, Tokens, Tokens];
    const bound = yield* DeviceBound;
    const results: Array<Attended> = [];
    for (const blocks of [[a, b, c, d], [d, c, b, a], [c, a, d, b]]) {
      yield* check({ ...cut, blocks });
      results.push(yield* attend({ ...cut, blocks }));
    }
    for (const { o, lse } of results) {
      assert.ok(relativeL2(o, results[0]!.o) <= bound.o);
      assert.ok(maxAbs(lse, results[0]!.lse) <= bound.lse);
    }
  }),
};

const manyBlocks: DeviceCase = {
  name: "many small blocks are as exact as one",
  run: checkEach(
    [[157], Array(52).fill(3).concat(1)].map((lengths) =>
      whole(problem({ tokens: 157 }), { lengths })
    ),
  ),
};

const longBlock: DeviceCase = {
  name: "one block of many keys",
  run: check(whole(problem({ tokens: 900, heads: 2, kvHeads: 1 }), { lengths: [900] })),
};

/** Where the tokens of a ring's ranks lie, by layout. */
export const layouts: Record<string, ReadonlyArray<Tokens>> = {
  contiguous: stretches([40, 51, 40]),
  zigzag: [
    [stretch(0, 22), stretch(110, 131)],
    [stretch(22, 44), stretch(88, 110)],
    [stretch(44, 66), stretch(66, 88)],
  ],
  striped: [44, 44, 43].map((count, start) => [{ start, run: 1, stride: 3, first: 0, count }]),
  "weighted striped": [
    [{ start: 0, run: 3, stride: 7, first: 0, count: 57 }],
    [{ start: 3, run: 3, stride: 7, first: 0, count: 56 }],
    [{ start: 6, run: 1, stride: 7, first: 0, count: 18 }],
  ],
};

const rings: ReadonlyArray<DeviceCase> = Object.entries(layouts).map(([layout, shards]) => ({
  name: `every rank of a ring of 3, ${layout}`,
  run: checkEach(([
    causal,
    ...[3, 20].map(window),
    full,
  ] as Array<Mask>)
    .flatMap((mask) => {
      const cut = whole(problem({ tokens: 131, attention: mask }));
      return shards.map((queries, rank) => ({
        ...cut,
        queries,
        // As blocks arrive at a rank: its own first, then its left neighbour's, and so on.
        blocks: shards.map((_, step) => shards[(rank - step + 3) % 3]!),
      }));
    })),
}));

const parts: DeviceCase = {
  name: "spans that begin in the middle of a run",
  run: check({
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

const farPositions: DeviceCase = {
  name: "positions near 2³⁰",
  run: checkEach(
    ([causal, window(20)] as Array<Mask>).map((mask) =>
      whole(problem({ attention: mask }), { offset: 2 ** 30 - 100 })
    ),
  ),
};

const places: DeviceCase = {
  name: "bytes may lie anywhere",
  run: check(whole(problem(), { place: unaligned })),
};

// --- Nothing to see -----------------------------------------------------------------------------

const emptyShard: DeviceCase = {
  name: "a shard without tokens",
  run: Effect.gen(function* () {
    const { o, lse } = yield* attend(whole(problem(), { queries: [] }));
    assert.deepEqual([o.length, lse.length], [0, 0]);
  }),
};

const noTiles: DeviceCase = {
  name: "a block of which no pair counts",
  run: Effect.gen(function* () {
    const cut = whole(problem({ attention: full }));
    const [first, second] = cut.blocks as [Tokens, Tokens];
    const expected = yield* attend({ ...cut, blocks: [first] });
    const accumulator = yield* begin(cut);
    yield* absorb(cut, accumulator, first);
    yield* absorb(cut, accumulator, second, []);
    assertSame(yield* accumulator.finish, expected);
  }).pipe(Effect.scoped),
};

const blindRows: DeviceCase = {
  name: "a row that sees no key is 0, and its log-sum-exp −∞",
  run: Effect.gen(function* () {
    const batch = 2, tokens = 62, heads = 4, headDim = 64, from = 17;
    const cut = whole(problem({ batch, tokens, heads, headDim }));
    // Rows before `from` see nothing of the only block.
    const { o, lse } = yield* attend({ ...cut, blocks: [[stretch(from, tokens)]] });
    const never = yield* attend({ ...cut, blocks: [] });
    assert.ok(never.o.every((x) => x === 0) && never.lse.every((x) => x === -Infinity));
    for (let b = 0; b < batch; b++) {
      const at = b * tokens * heads * headDim;
      assert.ok(o.subarray(at, at + from * heads * headDim).every((x) => x === 0));
      assert.ok(
        o.subarray(at + from * heads * headDim, at + tokens * heads * headDim).every(
          (x) => Number.isFinite(x) && x !== 0,
        ),
      );
    }
    lse.forEach((x, i) => assert.equal(x === -Infinity, i % tokens < from));
  }),
};

// --- Formats ------------------------------------------------------------------------------------

const formats: ReadonlyArray<DeviceCase> = (["f16", "bf16"] as const).map((dtype: DType) => ({
  name: `${dtype} inputs, float32 arithmetic`,
  run: Effect.suspend(() => {
    const cut = whole(problem({ tokens: 131, batch: 2 }), { dtype, lengths: [62, 69] });
    const round = (x: Float32Array) => decode(dtype, encode(dtype, x));
    const { q, k, v } = cut.inputs;
    return check({ ...cut, inputs: { q: round(q), k: round(k), v: round(v) } });
  }),
}));

// --- Numeric traps ------------------------------------------------------------------------------

/**
 * Inputs whose last component of every key is 1, so that the last one of a query shifts its logits. The last, because
 * every sum that takes it in earlier loses more.
 */
const shifted = (problem: Problem, shift: (query: number) => number): Inputs => {
  const { heads, headDim, scale } = problem;
  const { q, k, v } = inputsOf(problem);
  for (let i = headDim - 1; i < k.length; i += headDim) k[i] = 1;
  for (let i = headDim - 1; i < q.length; i += headDim) {
    q[i] = shift(Math.floor(i / (heads * headDim)) % problem.tokens) / scale;
  }
  return { q, k, v };
};

const shifts: ReadonlyArray<DeviceCase> = [-6e4, 1e4].map((shift) => ({
  name: `all logits near ${shift}`,
  run: Effect.suspend(() => {
    const lengths = [20, 31, 11];
    const inputs = shifted(problem(), () => shift);
    return checkAgainstFloat32(whole(problem(), { lengths, inputs }));
  }),
}));

const lowest: DeviceCase = {
  name: "a row of logits near the lowest float32, among others",
  run: Effect.suspend(() => {
    const shape = problem({ scale: 1 });
    const inputs = shifted(shape, (query) => query === 40 ? -3.4e38 : 0);
    const width = shape.heads * shape.headDim;
    const q = inputs.q.map((x, i) => {
      const isLow = Math.floor(i / width) === 40;
      if (isLow) return i % shape.headDim === shape.headDim - 1 ? x : 0;
      return x / 8;
    });
    const cut = whole(shape, { inputs: { ...inputs, q }, lengths: [20, 31, 11] });
    // That row's log-sum-exp would hide the others'.
    const others = [stretch(0, 40), stretch(41, 62)];
    return checkEach([{ ...cut, queries: others }, cut]);
  }),
};

const farBlocks: ReadonlyArray<DeviceCase> = [100, -100].map((step) => ({
  name: `two blocks whose log-sum-exps differ by ${step}`,
  run: Effect.suspend(() => {
    const shape = problem({ attention: full });
    const { headDim, kvHeads, scale } = shape;
    const { q, k, v } = inputsOf(shape);
    for (let i = 0; i < q.length; i += headDim) q[i] = 1;
    for (let i = 31 * kvHeads * headDim; i < k.length; i += headDim) k[i] = step / scale;
    return checkAgainstFloat32(whole(shape, { inputs: { q, k, v }, lengths: [31, 31] }));
  }),
}));

/** Keys whose size changes from block to block; of one head alone, which must not be taken for another. */
const changingSizes: DeviceCase = {
  name: "large scores may follow small ones, and small ones large ones",
  run: Effect.forEach([[1, 40], [40, 1], [1, 40, 1]], (factors) => {
    const shape = problem({ tokens: 300, attention: full });
    const { kvHeads, headDim, tokens } = shape;
    const { q, k, v } = inputsOf(shape);
    const each = k.length / factors.length;
    const scaled = k.map((x, i) => {
      const head = Math.floor(i / headDim) % kvHeads;
      return head === 1 ? x * factors[Math.floor(i / each)]! : x;
    });
    const lengths = factors.map(() => tokens / factors.length);
    return checkAgainstFloat32(whole(shape, { lengths, inputs: { q, k: scaled, v } }));
  }, { discard: true }),
};

const constantValues: DeviceCase = {
  name: "equal values come back as they are",
  run: Effect.gen(function* () {
    const cut = whole(problem({ tokens: 131 }), { lengths: [20, 51, 60] });
    const v = cut.inputs.v.map(() => 1.7);
    const { o } = yield* attend({ ...cut, inputs: { ...cut.inputs, v } });
    assert.ok(maxAbs(o, o.map(() => 1.7)) <= 1e-6 * 1.7);
  }),
};

const zeroQueries: DeviceCase = {
  name: "zero queries give the mean of the values they see",
  run: Effect.suspend(() => {
    const cut = whole(problem({ tokens: 131 }), { lengths: [20, 51, 60] });
    const q = cut.inputs.q.map(() => 0);
    return check({ ...cut, inputs: { ...cut.inputs, q } });
  }),
};

const largeInputs: ReadonlyArray<DeviceCase> = [8, 30].map((factor) => ({
  name: `inputs times ${factor}`,
  run: Effect.suspend(() => {
    const shape = problem({ tokens: 131, heads: 8 });
    const lengths = [20, 51, 60];
    return checkAgainstFloat32(whole(shape, { lengths, inputs: inputsOf(shape, factor) }));
  }),
}));

/** One key whose scores float32 cannot hold: infinite of either sign, or no number at all. */
const beyondRange: ReadonlyArray<DeviceCase> = (["+∞", "−∞", "no number"] as const).map((
  score,
) => ({
  name: `a score of ${score} is computed or refused, and never lost among blocks`,
  run: Effect.gen(function* () {
    const shape = problem({ headDim: 16, scale: 1 });
    const { heads, kvHeads, headDim } = shape;
    const { q, k, v } = inputsOf(shape);
    const sign = score === "−∞" ? -1 : 1;
    q.forEach((x, i) => q[i] = sign * (2 + Math.abs(x)));
    for (const token of [3, 40]) {
      const at = token * kvHeads * headDim;
      for (let i = at; i < at + kvHeads * headDim; i++) {
        k[i] = score === "no number" && i % 2 === 1 ? -3e38 : 3e38;
      }
    }
    const cut = whole(shape, { inputs: { q, k, v }, lengths: [1, 19, 31, 11] });
    const { o, lse } = yield* attend(cut);
    const wanted = denseAttention(judged(shape), q, k, v);
    let refused = 0;
    lse.forEach((value, row) => {
      const [h, token] = [Math.floor(row / shape.tokens), row % shape.tokens];
      const at = (token * heads + h) * headDim;
      const outputs = o.subarray(at, at + headDim);
      if (![value, ...outputs].every(Number.isFinite)) return void refused++;
      outputs.forEach((x, c) => assert.ok(Math.abs(x - wanted.o[at + c]!) <= 1e-4, `row ${row}`));
    });
    // No key of those before them is beyond the range.
    assert.ok(refused <= heads * (shape.tokens - 3), "a row that is in range was refused");
  }),
}));

// --- What no device computes ---------------------------------------------------------------------

const misfits: DeviceCase = {
  name: "what does not fit is refused, in the same words by every device",
  run: Effect.gen(function* () {
    const cut = whole(problem());
    const { problem: { batch, tokens, heads, kvHeads, headDim, scale } } = cut;
    const device = yield* Device;
    const bytes = new Uint8Array(batch * tokens * heads * headDim * 4);
    const queries = { batch, tokens, heads, kvHeads, headDim, scale, dtype: "f32", bytes } as const;
    const refused: ReadonlyArray<readonly [Partial<typeof queries>, RegExp]> = [
      [{ headDim: 6 }, /head dim must be a multiple of 4 from 4 to 256: found 6/],
      [{ headDim: 260 }, /head dim must be a multiple of 4 from 4 to 256: found 260/],
      [{ headDim: "8" as unknown as number }, /head dim must be a whole number from 0 on: found 8/],
      [{ headDim: 0 }, /head dim must be a multiple of 4 from 4 to 256: found 0/],
      [{ kvHeads: 3 }, /query heads must be a multiple of the 3 KV heads: found 4/],
      [{ kvHeads: 0 }, /number of KV heads must be a whole number from 1 on: found 0/],
      [{ heads: 0 }, /number of query heads must be a whole number from 1 on: found 0/],
      [{ batch: 0.5 }, /batch size must be a whole number from 1 on: found 0.5/],
      [{ tokens: -1 }, /number of query tokens must be a whole number from 0 on: found -1/],
      [{ scale: NaN }, /score scale must be a finite float32: found NaN/],
      [{ scale: 1e39 }, /score scale must be a finite float32: found 1e\+39/],
      [{ tokens: 61 }, /a shard of 62464 bytes was announced, 63488 came/],
    ];
    for (const [changes, sentence] of refused) {
      const { message } = yield* Effect.flip(device.begin({ ...queries, ...changes }))
        .pipe(Effect.orDie);
      assert.match(message, sentence);
    }

    const block = { tokens: 20, dtype: "f32", bytes: new Uint8Array(20 * kvHeads * headDim * 8) };
    const tile = {
      row: 0,
      queries: stretch(0, tokens),
      column: 0,
      keys: stretch(0, 20),
      full: false,
    };
    const absorbed: ReadonlyArray<
      readonly [Partial<typeof block>, Partial<typeof tile>, RegExp]
    > = [
      [{ tokens: 19 }, {}, /a block of 19456 bytes was announced, 20480 came/],
      [{}, { row: 1 }, /in the 62 query rows that there are: found 1 … 62/],
      [{}, { column: 1 }, /in the 20 keys that there are: found 1 … 20/],
      [{}, { keys: stretch(0, 21) }, /in the 20 keys that there are: found 0 … 20/],
      [{}, { row: -1 }, /first of a tile's query rows must be a whole number from 0 on: found -1/],
      [{}, { keys: stretch(2 ** 30 - 19, 2 ** 30 + 1) }, /its positions end before 1073741824/],
      [
        {},
        { queries: stretch(2 ** 30 - tokens + 1, 2 ** 30 + 1) },
        /its positions end before 1073741824/,
      ],
      [{}, { keys: { ...stretch(0, 20), count: 0.5 } }, /number of a tile's keys must be a whole/],
      [{}, { keys: { ...stretch(0, 20), run: 0 } }, /run of a span of keys must be a whole number/],
      [
        {},
        { keys: { ...stretch(0, 20), stride: 3 } },
        /stride of a span of keys must be .* from 20/,
      ],
      [{}, { keys: { ...stretch(0, 20), start: NaN } }, /start of a span of keys must be a whole/],
      [{}, { keys: { ...stretch(0, 20), first: -1 } }, /first token of a span of keys must be a/],
      [{}, { keys: { ...stretch(0, 20), stride: 2 ** 40 } }, /must have numbers below 1073741824/],
      [{ tokens: 20.5 }, {}, /number of a block's tokens must be a whole number from 0 on/],
    ];
    for (const [blockChanges, tileChanges, sentence] of absorbed) {
      const accumulator = yield* device.begin(queries);
      const { message } = yield* Effect.flip(accumulator.absorb(
        { ...block, dtype: "f32", ...blockChanges } as Parameters<typeof accumulator.absorb>[0],
        [{ ...tile, ...tileChanges }],
        bandOf(causal),
      )).pipe(Effect.orDie);
      assert.match(message, sentence);
    }
    for (const band of [{ back: Infinity, ahead: 0 }, { back: 0, ahead: 1.5 }]) {
      const accumulator = yield* device.begin(queries);
      const keyValues = { ...block, dtype: "f32" } as const;
      const { message } = yield* Effect.flip(accumulator.absorb(keyValues, [tile], band))
        .pipe(Effect.orDie);
      assert.match(message, /a band must have whole numbers up to 1073741824 in size: found/);
    }
    yield* check(cut); // and it goes on serving
  }).pipe(Effect.scoped),
};

// --- One device, many uses ----------------------------------------------------------------------

const repeatable: DeviceCase = {
  name: "the same calls give the same bits",
  run: Effect.gen(function* () {
    const cut = whole(problem({ batch: 2, tokens: 131 }), { lengths: [20, 51, 60] });
    assertSame(yield* attend(cut), yield* attend(cut));
  }),
};

const interleaved: DeviceCase = {
  name: "two accumulators do not disturb each other",
  run: Effect.gen(function* () {
    const ours = whole(problem({ tokens: 131 }), { lengths: [20, 51, 60] });
    const theirs = whole(problem({ heads: 6, attention: full }), { lengths: [7, 40, 15] });
    const [a, b] = [yield* begin(ours), yield* begin(theirs)];
    for (let i = 0; i < 3; i++) {
      yield* Effect.all([absorb(ours, a, ours.blocks[i]!), absorb(theirs, b, theirs.blocks[i]!)], {
        concurrency: "unbounded",
      });
    }
    const [ourResult, theirResult] = [yield* a.finish, yield* b.finish];
    assertSame(ourResult, yield* attend(ours));
    assertSame(theirResult, yield* attend(theirs));
  }).pipe(Effect.scoped),
};

const reopened: DeviceCase = {
  name: "an accumulator begins and works after fifty others were closed",
  run: Effect.gen(function* () {
    const cut = whole(problem());
    const random = uniform(7);
    for (let i = 0; i < 50; i++) {
      yield* Effect.scoped(Effect.gen(function* () {
        const accumulator = yield* begin(cut);
        if (random() < 0.2) yield* absorb(cut, accumulator, cut.blocks[0]!);
      }));
    }
    yield* check(cut);
  }),
};

/** Every promise of the contract. */
export const deviceCases: ReadonlyArray<DeviceCase> = [
  ...heads,
  ...headDims,
  ...lengths,
  ...masks,
  scale,
  orders,
  manyBlocks,
  longBlock,
  ...rings,
  parts,
  farPositions,
  places,
  emptyShard,
  noTiles,
  blindRows,
  ...formats,
  ...shifts,
  lowest,
  ...farBlocks,
  changingSizes,
  constantValues,
  zeroQueries,
  ...largeInputs,
  ...beyondRange,
  misfits,
  repeatable,
  interleaved,
  reopened,
];

/** How a plugin is tested. */
export interface DeviceUnderTest {
  /** How close to float64 it comes; 2e-6 and 1e-5 unless told. */
  readonly bound?: DeviceBound;
  /** Names of cases with the reason why this device is excused from them. */
  readonly skip?: Readonly<Record<string, string>>;
  /** Why it cannot run here. */
  readonly ignore?: string;
  /** Which contract: that of a device and its forward pass unless told. */
  readonly contract?: { readonly name: string; readonly cases: ReadonlyArray<DeviceCase> };
}

/** Registers a contract as one test of this plugin, with a step for each case. */
export const testDevice = (
  plugin: DevicePlugin,
  { bound, skip = {}, ignore, contract = { name: "the contract", cases: deviceCases } }:
    DeviceUnderTest,
): void => {
  for (const name of Object.keys(skip)) {
    assert.ok(contract.cases.some((one) => one.name === name), `there is no case "${name}"`);
  }
  const suffix = ignore === undefined ? "" : ` (not here: ${ignore})`;
  Deno.test({
    name: `device ${plugin.name} keeps ${contract.name}${suffix}`,
    ignore: ignore !== undefined,
    fn: async (test) => {
      const runtime = ManagedRuntime.make(plugin.layer);
      try {
        for (const { name, run } of contract.cases) {
          const reason = skip[name];
          await test.step({
            name: reason === undefined ? name : `${name} (skipped: ${reason})`,
            ignore: reason !== undefined,
            // The device's Worker outlives a step; the whole test is held to leave nothing open.
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
