/**
 * Small attentions whose answers are known, because drivers compile wrongly at times and say nothing.
 *
 * @module
 */
import { denseAttention } from "../../kernels/oracle.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, Tile } from "../../runtime/kernel.ts";
import { bandOf, type Mask } from "../../runtime/mask.ts";
import { contiguous, type Span } from "../../runtime/span.ts";
import type { VariantName } from "./program.ts";

const batch = 1, heads = 4, kvHeads = 2, tokens = 112;
/** How far the positions of query rows are apart. */
const apart = 5;

/** A problem, with its keys in two tiles, so that the second finds a state. */
interface Probe {
  readonly mask: Mask;
  /** The first query row, and how many there are: no multiple of any workgroup. */
  readonly from: number;
  readonly rows: number;
  readonly lengths: readonly [number, number];
}

const probes: Readonly<Record<VariantName, Probe>> = {
  // Keys that every row sees, in whole groups of up to 16.
  clear: { mask: { kind: "full" }, from: 0, rows: 23, lengths: [64, 48] },
  // In the first tile keys that every row sees, with others before and after them; in the second none.
  masked: { mask: { kind: "window", window: 100 }, from: 10, rows: 13, lengths: [61, 51] },
};

/** Largest error of an output or a log-sum-exp; a wrong program is off by far more. */
const bound = 1e-4;

/** Numbers between −2 and 2 without a pattern that could hide an exchange of rows. */
const numbers = (phase: number, count: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => 2 * Math.sin(phase + i * i * 0.37));

/**
 * Throws where K/V of this format and head dimension give something else than plain loops do, in one of the variants
 * of the program.
 */
export const selfCheck = async (
  kernel: Pick<AttentionKernel, "begin">,
  dtype: DType,
  headDim: number,
  variant: VariantName,
): Promise<void> => {
  const { mask, from, rows, lengths } = probes[variant];
  const position = (row: number) => (from + row) * apart;
  const shape = { batch, heads, kvHeads, headDim, scale: Math.SQRT2 / Math.sqrt(headDim) };
  const width = heads * headDim;
  const q = numbers(0, tokens * width);
  const [k, v] = [1, 2].map((phase) => encode(dtype, numbers(phase, tokens * kvHeads * headDim)));
  const expected = denseAttention(
    { ...shape, tokens, mask },
    q,
    decode(dtype, k!),
    decode(dtype, v!),
  );

  const mine = Float32Array.from(
    { length: rows * width },
    (_, i) => q[position(Math.floor(i / width)) * width + i % width]!,
  );
  const bytes = new Uint8Array(k!.length + v!.length);
  bytes.set(k!);
  bytes.set(v!, k!.length);
  const accumulation = await kernel.begin({
    ...{ ...shape, tokens: rows },
    dtype: "f32",
    bytes: encode("f32", mine),
  });
  try {
    const queries: Span = { start: position(0), run: 1, stride: apart, first: 0, count: rows };
    const tiles = [contiguous(0, lengths[0]), contiguous(lengths[0], lengths[1])].map((
      keys,
    ): Tile => ({ row: 0, queries, column: keys.start, keys, full: variant === "clear" }));
    await accumulation.absorb({ tokens, dtype, bytes }, tiles, bandOf(mask));
    const { o, lse } = await accumulation.finish();
    const compare = (what: string, found: Float32Array, wanted: (i: number) => number) => {
      const wrong = found.findIndex((x, i) => !(Math.abs(x - wanted(i)) <= bound));
      if (wrong < 0) return;
      throw new Error(
        `its driver computes wrong results: ${what} of ${dtype} attention was ${found[wrong]}, ` +
          `not ${wanted(wrong)}`,
      );
    };
    compare(
      "an output",
      o,
      (i) => expected.o[position(Math.floor(i / width)) * width + i % width]!,
    );
    compare(
      "a log-sum-exp",
      lse,
      (i) => expected.lse[Math.floor(i / rows) * tokens + position(i % rows)]!,
    );
  } finally {
    accumulation.close();
  }
};
