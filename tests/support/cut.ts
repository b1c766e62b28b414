/**
 * One attention problem cut up for a device, run on it, and compared with the oracle. Positions are counted one by
 * one here, independently of the code that plans a ring.
 *
 * @module
 */
import { Context, Effect, type Scope } from "effect";
import assert from "node:assert/strict";
import { denseAttention } from "../../kernels/oracle.ts";
import type { Problem } from "../../runtime/plan.ts";
import { type Accumulator, Device } from "../../runtime/device.ts";
import { type DType, encode } from "../../runtime/dtype.ts";
import type { DeviceFailed } from "../../runtime/errors.ts";
import type { Attended, Tile } from "../../runtime/kernel.ts";
import type { Span } from "../../runtime/span.ts";
import { maxAbs, relativeL2 } from "./closeness.ts";
import { denseFloat32 } from "./dense_f32.ts";
import { positionsOfSpan } from "./spans.ts";
import { bandOf, judged, type Mask } from "./masks.ts";

/** How far from float64 a device may be on standard normal float32 input. */
export interface DeviceBound {
  /** Relative L2 distance of the outputs. */
  readonly o: number;
  /** Largest distance of a log-sum-exp. */
  readonly lse: number;
}

/** The bound in force; what a float32 device reaches unless its test says otherwise. */
export const DeviceBound = Context.Reference<DeviceBound>("annulus/tests/DeviceBound", {
  defaultValue: () => ({ o: 2e-6, lse: 1e-5 }),
});

/** The token positions of a shard or a block: spans, one after the other. */
export type Tokens = ReadonlyArray<Span>;

/** Whole tensors: q [batch, tokens, heads, headDim], k and v [batch, tokens, kvHeads, headDim]. */
export interface Inputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** One attention problem and how it is cut up for the device. */
export interface Cut {
  readonly problem: Problem;
  readonly inputs: Inputs;
  readonly queries: Tokens;
  readonly blocks: ReadonlyArray<Tokens>;
  readonly dtype?: DType;
  /** Added to every position that the device is told. */
  readonly offset?: number;
  /** Where bytes lie: in shared memory unless a case is about something else. */
  readonly place?: (bytes: Uint8Array) => Uint8Array;
}

// --- Positions, spans and tiles, by counting one by one -----------------------------------------

/** The positions of these tokens, in the order of the spans. */
export const positionsOf = (tokens: Tokens): ReadonlyArray<number> =>
  tokens.flatMap(positionsOfSpan);

/** Tokens `from` … `to − 1`. */
export const stretch = (from: number, to: number): Span => {
  const count = to - from;
  return { start: from, run: Math.max(count, 1), stride: Math.max(count, 1), first: 0, count };
};

/** Consecutive stretches of these lengths. */
export const stretches = (lengths: ReadonlyArray<number>): ReadonlyArray<Tokens> => {
  let from = 0;
  return lengths.map((length) => [stretch(from, from += length)]);
};

const sees = (mask: Mask, q: number, k: number): boolean =>
  mask.every(({ definition: { name }, params }) =>
    k <= q && (name === "causal" || q - k < Number(params["size"]))
  );

/** Every span of queries against every span of keys, where at least one pair counts. */
export const tilesOf = (mask: Mask, queries: Tokens, keys: Tokens, offset: number): Array<Tile> => {
  const tiles: Array<Tile> = [];
  const moved = (span: Span): Span => ({ ...span, start: span.start + offset });
  let row = 0;
  for (const rows of queries) {
    let column = 0;
    for (const columns of keys) {
      const pairs = positionsOfSpan(rows).flatMap((q) =>
        positionsOfSpan(columns).map((k) => sees(mask, q, k))
      );
      if (pairs.includes(true)) {
        const full = !pairs.includes(false);
        tiles.push({ row, queries: moved(rows), column, keys: moved(columns), full });
      }
      column += columns.count;
    }
    row += rows.count;
  }
  return tiles;
};

// --- Bytes --------------------------------------------------------------------------------------

/** Rows of a [batch, tokens, …width] tensor at these tokens. */
export const gather = (
  tensor: ArrayLike<number>,
  batch: number,
  width: number,
  positions: ReadonlyArray<number>,
): Float64Array<ArrayBuffer> => {
  const tokens = tensor.length / (batch * width);
  const picked = new Float64Array(batch * positions.length * width);
  for (let b = 0, to = 0; b < batch; b++) {
    for (const position of positions) {
      for (let c = 0; c < width; c++) picked[to++] = tensor[(b * tokens + position) * width + c]!;
    }
  }
  return picked;
};

/** Two tensors, one after the other, in float32. */
export const concat = (a: Float64Array, b: Float64Array): Float32Array => {
  const both = new Float32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
};

/** In shared memory, behind some other bytes. */
export const shared = (bytes: Uint8Array): Uint8Array => {
  const placed = new Uint8Array(new SharedArrayBuffer(bytes.length + 12), 8, bytes.length);
  placed.set(bytes);
  return placed;
};

/** In memory of its own, at an odd offset. */
export const unaligned = (bytes: Uint8Array): Uint8Array => {
  const placed = new Uint8Array(new ArrayBuffer(bytes.length + 5), 3, bytes.length);
  placed.set(bytes);
  return placed;
};

// --- Running and comparing ----------------------------------------------------------------------

/** Uploads the queries of a cut, and then spoils the bytes, which the device must not need any more. */
export const begin = (cut: Cut): Effect.Effect<Accumulator, DeviceFailed, Device | Scope.Scope> =>
  Effect.gen(function* () {
    const { problem, inputs, queries, dtype = "f32", place = shared } = cut;
    const { batch, heads, headDim } = problem;
    const positions = positionsOf(queries);
    const q = gather(inputs.q, batch, heads * headDim, positions);
    const bytes = place(encode(dtype, Float32Array.from(q)));
    const device = yield* Device;
    const { kvHeads, scale } = problem;
    const shape = { batch, heads, kvHeads, headDim, scale, tokens: positions.length };
    const accumulator = yield* device.begin({ ...shape, dtype, bytes });
    bytes.fill(0xff);
    return accumulator;
  });

/** Absorbs one block of a cut, and then spoils its bytes, which the device must not need any more. */
export const absorb = (
  cut: Cut,
  accumulator: Accumulator,
  block: Tokens,
  tiles = tilesOf(cut.problem.attention, cut.queries, block, cut.offset ?? 0),
): Effect.Effect<void, DeviceFailed> =>
  Effect.gen(function* () {
    const { problem, inputs, dtype = "f32", place = shared } = cut;
    const { batch, kvHeads, headDim, attention } = problem;
    const positions = positionsOf(block);
    const [k, v] = [inputs.k, inputs.v].map((x) => gather(x, batch, kvHeads * headDim, positions));
    const bytes = place(encode(dtype, concat(k!, v!)));
    const keyValues = { tokens: positions.length, dtype, bytes };
    const busy = yield* accumulator.absorb(keyValues, tiles, bandOf(attention));
    assert.ok(busy >= 0, `the device was busy for ${busy} ms`);
    bytes.fill(0xff);
  });

/** Absorbs every block of a cut that it sees anything of, as a ring does, and gives the result. */
export const attend = (cut: Cut): Effect.Effect<Attended, DeviceFailed, Device> =>
  Effect.gen(function* () {
    const accumulator = yield* begin(cut);
    for (const block of cut.blocks) {
      const tiles = tilesOf(cut.problem.attention, cut.queries, block, cut.offset ?? 0);
      if (tiles.length > 0) yield* absorb(cut, accumulator, block, tiles);
    }
    return yield* accumulator.finish;
  }).pipe(Effect.scoped);

/** Outputs and log-sum-exps, laid out as `Attended`. */
interface Rows {
  readonly o: ArrayLike<number>;
  readonly lse: ArrayLike<number>;
}

/** The rows of a cut's queries, out of all rows. */
export const rowsOf = ({ problem, queries }: Cut, whole: Rows): Rows => {
  const { batch, heads, headDim } = problem;
  const positions = positionsOf(queries);
  return {
    o: gather(whole.o, batch, heads * headDim, positions),
    lse: gather(whole.lse, batch * heads, 1, positions),
  };
};

const largestFinite = (x: ArrayLike<number>): number =>
  Array.from(x).filter(Number.isFinite).reduce((most, a) => Math.max(most, Math.abs(a)), 0);

/** Root mean square. */
export const rms = (x: ArrayLike<number>): number =>
  Math.sqrt(Array.from(x).reduce((sum, a) => sum + a * a, 0) / x.length);

/** Asserts that a result is close to the expected one, and that a result of zeros would not be. */
export const assertClose = (actual: Rows, expected: Rows, bound: DeviceBound): void => {
  assert.equal(actual.o.length, expected.o.length);
  assert.equal(actual.lse.length, expected.lse.length);
  assert.ok(rms(expected.o) >= 50 * bound.o, "the expected outputs are too small to tell");
  assert.ok(bound.o <= 1 / 50, `a bound of ${bound.o} admits anything`);
  const largest = largestFinite(expected.lse);
  const lseBound = bound.lse + largest * 2 ** -22; // float32 holds it no closer
  assert.ok(largest >= 50 * lseBound, "the expected log-sum-exps are too small to tell");
  const [o, lse] = [relativeL2(actual.o, expected.o), maxAbs(actual.lse, expected.lse)];
  assert.ok(o <= bound.o, `o is ${o} away, at most ${bound.o} is admitted`);
  assert.ok(lse <= lseBound, `lse is ${lse} away, at most ${lseBound} is admitted`);
};

/** Runs a cut and compares it with the oracle. */
export const check = (cut: Cut): Effect.Effect<void, DeviceFailed, Device> =>
  Effect.gen(function* () {
    const whole = denseAttention(judged(cut.problem), cut.inputs.q, cut.inputs.k, cut.inputs.v);
    const expected = rowsOf(cut, whole);
    assertClose(yield* attend(cut), expected, yield* DeviceBound);
  });

/** As `check`, where logits are so large that float32 itself is off: thrice the error of plain dense attention. */
export const checkAgainstFloat32 = (cut: Cut): Effect.Effect<void, DeviceFailed, Device> =>
  Effect.gen(function* () {
    const { q, k, v } = cut.inputs;
    const exact = denseAttention(judged(cut.problem), q, k, v);
    const plain = denseFloat32(cut.problem, q, k, v);
    const bound = yield* DeviceBound;
    const expected = rowsOf(cut, exact);
    assertClose(yield* attend(cut), expected, {
      o: Math.max(bound.o, 3 * relativeL2(plain.o, exact.o)),
      lse: Math.max(bound.lse, 3 * maxAbs(plain.lse, exact.lse)),
    });
  });
