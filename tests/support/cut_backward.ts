/**
 * The backward pass of a problem cut up for a device, run on it, and compared with the oracle.
 *
 * @module
 */
import { Context, Effect, type Scope } from "effect";
import assert from "node:assert/strict";
import { denseAttention, denseGradients } from "../../kernels/oracle.ts";
import { type BackwardAccumulator, Device } from "../../runtime/device.ts";
import { encode } from "../../runtime/dtype.ts";
import type { DeviceFailed } from "../../runtime/errors.ts";
import { relativeL2 } from "./closeness.ts";
import { concat, type Cut, gather, positionsOf, rms, shared, tilesOf, type Tokens } from "./cut.ts";
import { normals } from "./random.ts";
import { bandOf, judged, withoutAttention } from "./masks.ts";

/** Largest relative L2 distance of dq, dk and dv from float64. */
export const GradientBound = Context.Reference<number>("annulus/tests/GradientBound", {
  defaultValue: () => 5e-6,
});

/** Gradients of one query shard: dq of its rows, dk and dv of every block one after the other. */
export interface ShardGradients {
  readonly dq: ArrayLike<number>;
  readonly dk: ArrayLike<number>;
  readonly dv: ArrayLike<number>;
}

const widthsOf = ({ problem: { heads, kvHeads, headDim } }: Cut) => ({
  rows: heads * headDim,
  keys: kvHeads * headDim,
});

/** A random cotangent of the whole output: a sum, say, would hide errors that cancel. */
export const cotangentOf = ({ problem: { batch, tokens, heads, headDim } }: Cut): Float32Array =>
  normals(4, batch * tokens * heads * headDim);

/** Float32 values in shared memory, behind some others. */
const placed = (values: ArrayLike<number>): Float32Array => {
  const at = new Float32Array(new SharedArrayBuffer(values.length * 4 + 12), 12, values.length);
  at.set(values);
  return at;
};

/** Begins the backward pass of a cut's queries, and then spoils what the device must not need any more. */
export const beginBackward = (
  cut: Cut,
): Effect.Effect<BackwardAccumulator, DeviceFailed, Device | Scope.Scope> =>
  Effect.gen(function* () {
    const { problem, inputs: { q, k, v }, queries, dtype = "f32", place = shared } = cut;
    const { batch, heads } = problem;
    const positions = positionsOf(queries);
    const { rows } = widthsOf(cut);
    const whole = denseAttention(judged(problem), q, k, v);
    const bytes = place(encode(dtype, Float32Array.from(gather(q, batch, rows, positions))));
    const outcome = {
      o: placed(gather(whole.o, batch, rows, positions)),
      lse: placed(gather(whole.lse, batch * heads, 1, positions)),
      cotangent: placed(gather(cotangentOf(cut), batch, rows, positions)),
    };
    const device = yield* Device;
    const begin = device.beginBackward;
    assert.ok(begin !== undefined, `device ${device.info.name} has no backward pass`);
    const backward = yield* begin(
      { ...withoutAttention(problem), tokens: positions.length, dtype, bytes },
      outcome,
    );
    bytes.fill(0xff);
    for (const array of Object.values(outcome)) array.fill(NaN);
    return backward;
  });

/** Absorbs one block, and then spoils its bytes. */
export const absorbBackward = (
  cut: Cut,
  backward: BackwardAccumulator,
  block: Tokens,
  tiles = tilesOf(cut.problem.attention, cut.queries, block, cut.offset ?? 0),
): Effect.Effect<Float32Array, DeviceFailed> =>
  Effect.gen(function* () {
    const { problem: { batch, attention }, inputs, dtype = "f32", place = shared } = cut;
    const positions = positionsOf(block);
    const [k, v] = [inputs.k, inputs.v].map((x) => gather(x, batch, widthsOf(cut).keys, positions));
    const bytes = place(encode(dtype, concat(k!, v!)));
    const { gradients, busy } = yield* backward.absorb(
      { tokens: positions.length, dtype, bytes },
      tiles,
      bandOf(attention),
    );
    assert.ok(busy >= 0, `the device was busy for ${busy} ms`);
    assert.equal(gradients.length, k!.length + v!.length);
    bytes.fill(0xff);
    return gradients;
  });

/** Every block of a cut, as a ring meets them. */
export const gradientsOf = (cut: Cut): Effect.Effect<ShardGradients, DeviceFailed, Device> =>
  Effect.gen(function* () {
    const backward = yield* beginBackward(cut);
    const [dk, dv]: [Array<number>, Array<number>] = [[], []];
    for (const block of cut.blocks) {
      const gradients = yield* absorbBackward(cut, backward, block);
      dk.push(...gradients.subarray(0, gradients.length / 2));
      dv.push(...gradients.subarray(gradients.length / 2));
    }
    return { dq: yield* backward.finish, dk, dv };
  }).pipe(Effect.scoped);

/** What the oracle says: the cotangent of every other row is zero, so that only the cut's queries count. */
export const expectedGradients = (cut: Cut): ShardGradients => {
  const { problem, inputs: { q, k, v }, queries, blocks } = cut;
  const { batch, tokens } = problem;
  const { rows, keys } = widthsOf(cut);
  const all = cotangentOf(cut);
  const dO = new Float32Array(all.length);
  const mine = positionsOf(queries);
  for (let b = 0; b < batch; b++) {
    for (const position of mine) {
      const at = (b * tokens + position) * rows;
      dO.set(all.subarray(at, at + rows), at);
    }
  }
  const { dq, dk, dv } = denseGradients(judged(problem), q, k, v, dO);
  const ofBlocks = (x: Float64Array) =>
    blocks.flatMap((block) => Array.from(gather(x, batch, keys, positionsOf(block))));
  return { dq: gather(dq, batch, rows, mine), dk: ofBlocks(dk), dv: ofBlocks(dv) };
};

/** Asserts that gradients are close to the expected ones, which are large enough to tell. */
export const assertGradients = (
  actual: ShardGradients,
  expected: ShardGradients,
  bound: number,
): void => {
  assert.ok(bound <= 1 / 50, `a bound of ${bound} admits anything`);
  for (const name of ["dq", "dk", "dv"] as const) {
    assert.equal(actual[name].length, expected[name].length, name);
    const size = rms(expected[name]);
    assert.ok(size >= 50 * bound, `the expected ${name} is too small to tell: ${size}`);
    const apart = relativeL2(actual[name], expected[name]);
    assert.ok(apart <= bound, `${name} is ${apart} away, at most ${bound} is admitted`);
  }
};

/** Runs the backward pass of a cut and compares it with the oracle. */
export const checkGradients = (cut: Cut): Effect.Effect<void, DeviceFailed, Device> =>
  Effect.gen(function* () {
    assertGradients(yield* gradientsOf(cut), expectedGradients(cut), yield* GradientBound);
  });
