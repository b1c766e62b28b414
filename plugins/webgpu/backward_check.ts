/**
 * A small backward pass whose answer is known, as `self_check.ts` has one of attention.
 *
 * @module
 */
import { denseAttention, denseGradients, type Judged } from "../../kernels/oracle.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, Tile } from "../../runtime/kernel.ts";
import { type Band, unbounded } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";

const problem = {
  batch: 1,
  tokens: 309, // no multiple of anything, and of the longer tiles two workgroups or more with their last rows missing
  heads: 4,
  kvHeads: 2,
  rules: { sees: (_b, _h, q, k) => k <= q },
} satisfies Partial<Judged>;
const causal: Band = { back: unbounded, ahead: 0 };

/** Largest error of a gradient; a wrong program is off by far more. */
const bound = 1e-3;

/** Numbers between −2 and 2 without a pattern that could hide an exchange of rows. */
const numbers = (phase: number, width: number): Float32Array =>
  Float32Array.from(
    { length: problem.tokens * width },
    (_, i) => 2 * Math.sin(phase + i * i * 0.37),
  );

/** Throws where K/V of this format and head dimension give other gradients than plain loops do. */
export const selfCheckBackward = async (
  kernel: Required<Pick<AttentionKernel, "beginBackward">>,
  dtype: DType,
  headDim: number,
): Promise<void> => {
  const { tokens, heads, kvHeads } = problem;
  const shape = { ...problem, headDim, scale: Math.SQRT2 / Math.sqrt(headDim) };
  const [q, cotangent] = [0, 3].map((phase) => numbers(phase, heads * headDim));
  const [k, v] = [1, 2].map((phase) => encode(dtype, numbers(phase, kvHeads * headDim)));
  const [keys, values] = [k!, v!].map((x) => decode(dtype, x));
  const { o, lse } = denseAttention(shape, q!, keys!, values!);
  const { dq, dk, dv } = denseGradients(shape, q!, keys!, values!, cotangent!);

  const bytes = new Uint8Array(k!.length + v!.length);
  bytes.set(k!);
  bytes.set(v!, k!.length);
  const backward = await kernel.beginBackward(
    { ...shape, dtype: "f32", bytes: encode("f32", q!) },
    { o: Float32Array.from(o), lse: Float32Array.from(lse), cotangent: cotangent! },
  );
  try {
    // Four tiles, so that half of them find a dq, and half of them dk and dv.
    const halves = [[0, 20], [20, tokens - 20]] as const;
    const tiles = halves.flatMap(([row, rows]) =>
      halves.map(([column, columns]): Tile => ({
        row,
        queries: contiguous(row, rows),
        column,
        keys: contiguous(column, columns),
        full: false,
      }))
    );
    const ofBlock = await backward.absorb({ tokens, dtype, bytes }, tiles, causal);
    const found = [...await backward.finish(), ...ofBlock];
    const expected = [...dq, ...dk, ...dv];
    const wrong = found.findIndex((x, i) => !(Math.abs(x - expected[i]!) <= bound));
    if (wrong < 0) return;
    throw new Error(
      `its driver computes wrong results: the gradients of ${dtype} attention had ` +
        `${found[wrong]} for ${expected[wrong]}`,
    );
  } finally {
    backward.close();
  }
};
