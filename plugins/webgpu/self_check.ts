/**
 * A small attention whose answer is known, because drivers compile wrongly at times and say nothing.
 *
 * @module
 */
import { denseAttention, type Problem } from "../../kernels/oracle.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, Tile } from "../../runtime/kernel.ts";
import { bandOf } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";

const problem: Problem = {
  batch: 1,
  tokens: 37, // no multiple of anything
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  scale: 0.5,
  mask: { kind: "causal" },
};

/** Largest error of an output or a log-sum-exp; a wrong program is off by far more. */
const bound = 1e-4;

/** Numbers between −2 and 2 without a pattern that could hide an exchange of rows. */
const numbers = (phase: number, heads: number): Float32Array =>
  Float32Array.from(
    { length: problem.tokens * heads * problem.headDim },
    (_, i) => 2 * Math.sin(phase + i * i * 0.37),
  );

/** Throws where K/V of this format give something else than plain loops do. */
export const selfCheck = async (
  kernel: Pick<AttentionKernel, "begin">,
  dtype: DType,
): Promise<void> => {
  const { tokens, heads, kvHeads, mask } = problem;
  const q = numbers(0, heads);
  const [k, v] = [encode(dtype, numbers(1, kvHeads)), encode(dtype, numbers(2, kvHeads))];
  const expected = denseAttention(problem, q, decode(dtype, k), decode(dtype, v));

  const bytes = new Uint8Array(k.length + v.length);
  bytes.set(k);
  bytes.set(v, k.length);
  const accumulation = await kernel.begin({ ...problem, dtype: "f32", bytes: encode("f32", q) });
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
