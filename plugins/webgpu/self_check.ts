/**
 * A small attention whose answer is known, because drivers compile wrongly at times and say nothing.
 *
 * @module
 */
import { denseAttention } from "../../kernels/oracle.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, Tile } from "../../runtime/kernel.ts";
import { bandOf } from "../../runtime/mask.ts";
import type { Problem } from "../../runtime/plan.ts";
import { contiguous } from "../../runtime/span.ts";

const problem = {
  batch: 1,
  tokens: 37, // no multiple of anything
  heads: 4,
  kvHeads: 2,
  mask: { kind: "causal" },
} satisfies Partial<Problem>;

/** Largest error of an output or a log-sum-exp; a wrong program is off by far more. */
const bound = 1e-4;

/** Numbers between −2 and 2 without a pattern that could hide an exchange of rows. */
const numbers = (phase: number, width: number): Float32Array =>
  Float32Array.from(
    { length: problem.tokens * width },
    (_, i) => 2 * Math.sin(phase + i * i * 0.37),
  );

/** Throws where K/V of this format and head dimension give something else than plain loops do. */
export const selfCheck = async (
  kernel: Pick<AttentionKernel, "begin">,
  dtype: DType,
  headDim: number,
): Promise<void> => {
  const { tokens, heads, kvHeads, mask } = problem;
  const shape = { ...problem, headDim, scale: Math.SQRT2 / Math.sqrt(headDim) };
  const q = numbers(0, heads * headDim);
  const [k, v] = [1, 2].map((phase) => encode(dtype, numbers(phase, kvHeads * headDim)));
  const expected = denseAttention(shape, q, decode(dtype, k!), decode(dtype, v!));

  const bytes = new Uint8Array(k!.length + v!.length);
  bytes.set(k!);
  bytes.set(v!, k!.length);
  const accumulation = await kernel.begin({ ...shape, dtype: "f32", bytes: encode("f32", q) });
  try {
    // Two tiles, so that the second one finds a state.
    const tiles = [[0, 20], [20, tokens - 20]].map(([from, count]): Tile => ({
      row: 0,
      queries: contiguous(0, tokens),
      column: from!,
      keys: contiguous(from!, count!),
      full: false,
    }));
    await accumulation.absorb({ tokens, dtype, bytes }, tiles, bandOf(mask));
    const { o, lse } = await accumulation.finish();
    const far = (x: number, i: number, of: Float64Array) => !(Math.abs(x - of[i]!) <= bound);
    const wrong = o.findIndex((x, i) => far(x, i, expected.o));
    const wrongLse = lse.findIndex((x, i) => far(x, i, expected.lse));
    if (wrong < 0 && wrongLse < 0) return;
    const [x, y] = wrong < 0
      ? [lse[wrongLse], expected.lse[wrongLse]]
      : [o[wrong], expected.o[wrong]];
    throw new Error(`its driver computes wrong results: ${dtype} attention gave ${x} for ${y}`);
  } finally {
    accumulation.close();
  }
};
