/**
 * Small attentions whose answers are known, because drivers compile wrongly at times and say nothing.
 *
 * @module
 */
import { denseAttention, type Rules } from "../../kernels/oracle.ts";
import { decode, type DType, encode } from "../../runtime/dtype.ts";
import type { AttentionKernel, Tile } from "../../runtime/kernel.ts";
import { type Band, unbounded } from "../../runtime/mask.ts";
import { contiguous } from "../../runtime/span.ts";
import type { variants } from "./program.ts";

const batch = 1, heads = 4, kvHeads = 2;

type Name = typeof variants[number];

/** The masks that bring a variant's keys about, for workgroups of `group` rows. */
const maskOf = (variant: Name, group: number, clear: number): Rules & { readonly band: Band } => {
  // Keys that every row sees.
  if (variant === "clear") return { sees: () => true, band: { back: unbounded, ahead: unbounded } };
  // Whole groups of keys that every row of a workgroup sees, with others before and after them.
  const back = Math.max(99, Math.min(group + 2 * clear, 200));
  return { sees: (_b, _h, q, k) => k <= q && k >= q - back, band: { back, ahead: 0 } };
};

/**
 * How many tokens it takes that `group` rows are a workgroup, and there are four: the last one with rows missing, and
 * all in another order than that of the rows. Larger workgroups are fewer, or this would take seconds. They are two
 * times `clear` keys or more.
 */
const tokensFor = (group: number, clear: number): number =>
  clear * Math.max(2, Math.ceil(Math.min(3 * group + 12, 272) / clear));
/** So many rows fewer than tokens, so that they are no multiple of anything. */
const missing = 5;

/** Largest error of an output or a log-sum-exp; a wrong program is off by far more. */
const bound = 1e-4;

/** Numbers between −2 and 2 without a pattern that could hide an exchange of rows. */
const numbers = (phase: number, count: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => 2 * Math.sin(phase + i * i * 0.37));

/**
 * Throws where K/V of this format and head dimension give something else than plain loops do, in one of the variants
 * of the program, for workgroups of `group` rows, which take `clear` keys at once where they see all.
 */
export const selfCheck = async (
  kernel: Pick<AttentionKernel, "begin">,
  dtype: DType,
  headDim: number,
  variant: Name,
  group: number,
  clear: number,
): Promise<void> => {
  const rules = maskOf(variant, group, clear);
  const whole = clear * Math.ceil(16 / clear);
  const tokens = tokensFor(group, whole);
  const rows = tokens - missing;
  const shape = { batch, heads, kvHeads, headDim, scale: Math.SQRT2 / Math.sqrt(headDim) };
  const width = heads * headDim;
  const q = numbers(0, tokens * width);
  const [k, v] = [1, 2].map((phase) => encode(dtype, numbers(phase, tokens * kvHeads * headDim)));
  const expected = denseAttention(
    { ...shape, tokens, rules },
    q,
    decode(dtype, k!),
    decode(dtype, v!),
  );

  const bytes = new Uint8Array(k!.length + v!.length);
  bytes.set(k!);
  bytes.set(v!, k!.length);
  const accumulation = await kernel.begin({
    ...{ ...shape, tokens: rows },
    dtype: "f32",
    bytes: encode("f32", q.subarray(0, rows * width)),
  });
  try {
    // In two tiles, so that the second finds a state; of clear keys each has whole groups.
    const first = variant === "clear" ? whole * Math.ceil(64 / whole) : 61;
    const tiles = [contiguous(0, first), contiguous(first, tokens - first)].map((keys): Tile => ({
      row: 0,
      queries: contiguous(0, rows),
      column: keys.start,
      keys,
      full: variant === "clear",
    }));
    await accumulation.absorb({ tokens, dtype, bytes }, tiles, rules.band);
    const { o, lse } = await accumulation.finish();
    const compare = (what: string, found: Float32Array, wanted: (i: number) => number) => {
      const wrong = found.findIndex((x, i) => !(Math.abs(x - wanted(i)) <= bound));
      if (wrong < 0) return;
      throw new Error(
        `its driver computes wrong results: ${what} of ${dtype} attention was ${found[wrong]}, ` +
          `not ${wanted(wrong)}`,
      );
    };
    compare("an output", o, (i) => expected.o[i]!);
    compare(
      "a log-sum-exp",
      lse,
      (i) => expected.lse[Math.floor(i / rows) * tokens + i % rows]!,
    );
  } finally {
    accumulation.close();
  }
};
