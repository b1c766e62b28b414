/**
 * The bare kernel: attention on a device through its port, with nothing of a ring around it.
 *
 * @module
 */
import { Effect, Result } from "effect";
import type { Device } from "../runtime/device.ts";
import type { Attended, KeyValues, Outcome, Queries, Tile } from "../runtime/kernel.ts";
import { resolveAttention } from "../runtime/attention.ts";
import type { Band } from "../runtime/mask.ts";
import { Asking, tilesOf } from "../runtime/tiles.ts";
import type { Plan, Problem } from "../runtime/plan.ts";
import { contiguous, positionAt, type Span } from "../runtime/span.ts";

/** Tensors of one batch entry: `q` [tokens, heads, headDim], `k` and `v` [tokens, kvHeads, headDim]. */
export interface Inputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** What one rank asks of its device. */
export interface Share {
  readonly queries: Queries;
  readonly band: Band;
  readonly steps: ReadonlyArray<{ readonly block: KeyValues; readonly tiles: ReadonlyArray<Tile> }>;
}

/** Rows of `x`, [tokens, width], at the positions of some spans, in memory that reaches a Worker without a copy. */
const rowsAt = (spans: ReadonlyArray<Span>, width: number, ...tensors: Array<Float32Array>) => {
  const tokens = spans.reduce((sum, { count }) => sum + count, 0);
  const rows = new Float32Array(new SharedArrayBuffer(tensors.length * tokens * width * 4));
  let at = 0;
  for (const x of tensors) {
    for (const span of spans) {
      for (let i = 0; i < span.count; i++, at += width) {
        const from = positionAt(span, i) * width;
        rows.set(x.subarray(from, from + width), at);
      }
    }
  }
  return { tokens, dtype: "f32" as const, bytes: new Uint8Array(rows.buffer) };
};

/** What queries have of a problem. */
const shapeOf = ({ batch, heads, kvHeads, headDim, scale }: Problem) => ({
  batch,
  heads,
  kvHeads,
  headDim,
  scale,
});

/** The whole problem in one call of `absorb`. */
export const wholeOf = (problem: Problem, { q, k, v }: Inputs): Share => {
  const { heads, kvHeads, headDim, tokens } = problem;
  const attention = Result.getOrThrow(resolveAttention(problem.attention, problem));
  const all = contiguous(0, tokens);
  return {
    queries: { ...shapeOf(problem), ...rowsAt([all], heads * headDim, q) },
    band: attention.band,
    steps: [{
      block: rowsAt([all], kvHeads * headDim, k, v),
      tiles: tilesOf(attention, new Asking(), [all], all).tiles,
    }],
  };
};

/** The calls that the ranks of a plan make, rank by rank, with the same blocks. */
export const sharesOf = ({ problem, attention, ranks }: Plan, { q, k, v }: Inputs): Array<Share> =>
  ranks.map(({ shard, steps }) => ({
    queries: { ...shapeOf(problem), ...rowsAt(shard, problem.heads * problem.headDim, q) },
    band: attention.band,
    steps: steps.filter(({ state }) => state !== "skip").map(({ block, tiles }) => ({
      block: rowsAt([block.span], problem.kvHeads * problem.headDim, k, v),
      tiles,
    })),
  }));

/** A measured pass over a share; times are seconds. */
export interface Measured<A> {
  readonly value: A;
  /** From `begin` to the end of `finish`. */
  readonly seconds: number;
  /** For which the device said it was busy with blocks. */
  readonly absorbing: number;
}

/** As many calls of `absorb` at once as the port allows: the next block is queued while one is computed. */
const inFlight = { concurrency: 2 };

/** Attention of one share. */
export const forward = (
  device: Device["Service"],
  { queries, band, steps }: Share,
) =>
  Effect.scoped(Effect.gen(function* () {
    const began = performance.now();
    const accumulator = yield* device.begin(queries);
    const busy = yield* Effect.forEach(
      steps,
      ({ block, tiles }) => accumulator.absorb(block, tiles, band),
      inFlight,
    );
    const value = yield* accumulator.finish;
    const absorbing = busy.reduce((a, b) => a + b, 0) / 1000;
    const seconds = (performance.now() - began) / 1000;
    return { value, seconds, absorbing } satisfies Measured<Attended>;
  }));

/** The gradients of one share: dq, and for each step dk and dv of its block. */
export const backward = (
  device: Required<Pick<Device["Service"], "beginBackward">>,
  { queries, band, steps }: Share,
  outcome: Outcome,
) =>
  Effect.scoped(Effect.gen(function* () {
    const began = performance.now();
    const pass = yield* device.beginBackward(queries, outcome);
    const blocks = yield* Effect.forEach(
      steps,
      ({ block, tiles }) => pass.absorb(block, tiles, band),
      inFlight,
    );
    const dq = yield* pass.finish;
    const absorbing = blocks.reduce((sum, { busy }) => sum + busy, 0) / 1000;
    const seconds = (performance.now() - began) / 1000;
    return { value: { dq, blocks: blocks.map(({ gradients }) => gradients) }, seconds, absorbing };
  }));
