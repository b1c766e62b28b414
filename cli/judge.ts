/**
 * Compares a finished result with the float64 reference: random rows of every rank, against every key of the input
 * file, streamed.
 *
 * @module
 */
import { Effect } from "effect";
import { expandedLatents, StreamingOracle } from "../kernels/oracle.ts";
import type { SafetensorsFile } from "../plugins/safetensors.ts";
import { decode, type DType } from "../runtime/dtype.ts";
import type { Attention } from "../runtime/attention.ts";
import { type FileInvalid, NotExact, VariantInvalid } from "../runtime/errors.ts";
import { upSizeOf, widthOf } from "../runtime/latent.ts";
import { type Plan, valueDimOf } from "../runtime/plan.ts";
import { positionAt } from "../runtime/span.ts";
import type { Definition } from "../runtime/variant.ts";
import type { Input } from "./inputs.ts";

/** How far a result is from the float64 reference. */
export interface ErrorFigures {
  /** Relative L2 norm of the difference in o. */
  readonly o: number;
  /** Largest absolute difference in lse. */
  readonly lse: number;
  readonly rows: number;
  /** Size of the largest lse among these rows. */
  readonly largestLse: number;
  /** Relative L2 norms of the differences in gradients, where there are any. */
  readonly dq?: number;
  readonly dk?: number;
  readonly dv?: number;
}

/** Whether a variant lacks what the float64 reference would ask it, since it says that in WGSL alone. */
export const lacksForReference = (
  { mask, score, slope, wgsl }: Definition,
  form: "mask" | "score" | "slope",
): boolean => {
  if (form === "mask") return mask === undefined && wgsl?.mask !== undefined;
  if (form === "score") return score === undefined && wgsl?.score !== undefined;
  return slope === undefined && (score ?? wgsl?.score) !== undefined;
};

/** Fails where the float64 reference does not know what an attention is. */
export const mustBeJudgeable = (
  { variants }: Attention,
  gradients: boolean,
): Effect.Effect<void, VariantInvalid> => {
  const forms = gradients ? ["mask", "score", "slope"] as const : ["mask", "score"] as const;
  for (const { definition } of variants) {
    const form = forms.find((form) => lacksForReference(definition, form));
    if (form === undefined) continue;
    const needed = `its ${form} in TypeScript for --verify`;
    return Effect.fail(
      new VariantInvalid({ variant: definition.name, needed, found: "none" }),
    );
  }
  return Effect.void;
};

/** Keys read at once. */
const chunkTokens = 128;

/** A small generator of its own seed (mulberry32), so that the same rows are judged every time. */
const generator = (seed: number) => (): number => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

/** Positions to judge, as many of every rank, by batch entry, ascending. */
export const pickRows = (
  { ranks, problem }: Plan,
  rowsPerRank: number,
): ReadonlyArray<ReadonlyArray<number>> => {
  const random = generator(1);
  const picked = Array.from({ length: problem.batch }, () => new Set<number>());
  for (const { shard, tokens } of ranks) {
    const all = shard.flatMap((span) =>
      Array.from({ length: span.count }, (_, i) => positionAt(span, i))
    );
    const wanted = Math.min(rowsPerRank, tokens * problem.batch);
    for (let found = 0; found < wanted;) {
      const batch = picked[Math.floor(random() * problem.batch)]!;
      const position = all[Math.floor(random() * tokens)]!;
      if (batch.has(position)) continue;
      batch.add(position);
      found++;
    }
  }
  return picked.map((positions) => [...positions].sort((a, b) => a - b));
};

/**
 * Judges `result`, which holds `o` and `lse`, by its `input`.
 *
 * @param progress Gets the share that is done, 0 to 1.
 */
export const judge = Effect.fn("judge")(function* (
  input: Input,
  result: SafetensorsFile,
  plan: Plan,
  rowsPerRank: number,
  progress: (share: number) => Effect.Effect<void>,
): Effect.fn.Return<ErrorFigures, FileInvalid> {
  const { tokens, heads, kvHeads, headDim, batch, scale, latent } = plan.problem;
  const values = (
    file: SafetensorsFile,
    name: string,
    dtype: DType,
    offset: number,
    length: number,
  ) => Effect.map(file.read(name, [{ offset, length }]), (bytes) => decode(dtype, bytes));
  const valueDim = valueDimOf(plan.problem);
  const picked = pickRows(plan, rowsPerRank);
  const up = latent === undefined ? new Float32Array(0) : yield* values(
    input.file,
    "kv_b",
    input.dtypes.kv_b,
    0,
    upSizeOf(latent, plan.problem),
  );
  let apart = 0, norm = 0, lseApart = 0, largestLse = 0, rows = 0;
  for (let b = 0; b < batch; b++) {
    const positions = picked[b]!;
    const width = heads * headDim;
    const q = new Float32Array(positions.length * width);
    for (const [row, position] of positions.entries()) {
      const at = (b * tokens + position) * width;
      q.set(yield* values(input.file, "q", input.dtypes.q, at, width), row * width);
    }
    const oracle = new StreamingOracle({
      ...{ heads, kvHeads, headDim, scale, rules: plan.attention, entry: b, positions, q },
    });
    for (let first = 0; first < tokens; first += chunkTokens) {
      const count = Math.min(chunkTokens, tokens - first);
      if (latent === undefined) {
        const at = (b * tokens + first) * kvHeads * headDim, length = count * kvHeads * headDim;
        const k = yield* values(input.file, "k", input.dtypes.k, at, length);
        const v = yield* values(input.file, "v", input.dtypes.v, at, length);
        oracle.absorb(first, k, v);
      } else {
        const width = widthOf(latent);
        const at = (b * tokens + first) * width, length = count * width;
        const latents = yield* values(input.file, "latent", input.dtypes.latent, at, length);
        const { k, v } = expandedLatents({ heads, headDim, ...latent }, latents, up);
        oracle.absorb(first, k, v);
      }
      yield* progress((b + (first + count) / tokens) / batch);
      // A turn of the event loop, for signals.
      yield* Effect.sleep(1);
    }
    const wanted = oracle.finish();
    for (const [row, position] of positions.entries()) {
      const ofRow = heads * valueDim;
      const o = yield* values(result, "o", "f32", (b * tokens + position) * ofRow, ofRow);
      for (let i = 0; i < ofRow; i++) {
        const component = Math.floor(i / valueDim) * headDim + i % valueDim;
        const reference = wanted.o[row * width + component]!;
        apart += (o[i]! - reference) ** 2;
        norm += reference ** 2;
      }
      for (let h = 0; h < heads; h++) {
        const [lse] = yield* values(result, "lse", "f32", (b * heads + h) * tokens + position, 1);
        const reference = wanted.lse[h * positions.length + row]!;
        if (lse === reference) continue; // −∞ as well, of a row that sees no key
        largestLse = Math.max(largestLse, Math.abs(reference));
        lseApart = Math.max(lseApart, Math.abs(lse! - reference));
      }
    }
    rows += positions.length;
  }
  const o = norm === 0 ? Math.sqrt(apart) : Math.sqrt(apart / norm);
  return { o, lse: lseApart, rows, largestLse };
});

/** What rounding K and V to a narrower format for the wire may cost. */
const wireBound: Record<DType, number> = { f32: 0, f16: 2e-3, bf16: 2e-2 };

/**
 * The largest errors that exact float32 attention may show. A score of size s carries a rounding error of about
 * s · 2⁻²⁴, so the bounds grow with the scores; lse is about the size of the largest.
 */
export const boundsFor = (largestLse: number, rounded: DType | undefined) => {
  const growth = Math.max(1, largestLse / 16);
  const wire = rounded === undefined ? 0 : wireBound[rounded];
  return {
    o: 2e-6 * growth + wire,
    lse: 1e-5 * growth + wire * growth * 16,
    gradients: 5e-6 * growth + 4 * wire,
  };
};

/** Fails where a result is farther from the reference than its bounds. */
export const mustBeExact = (
  figures: ErrorFigures,
  bounds: ReturnType<typeof boundsFor>,
): Effect.Effect<void, NotExact> => {
  const compared: ReadonlyArray<readonly [string, number, number]> = [
    ["o", figures.o, bounds.o],
    ["lse", figures.lse, bounds.lse],
    ["dq", figures.dq ?? 0, bounds.gradients],
    ["dk", figures.dk ?? 0, bounds.gradients],
    ["dv", figures.dv ?? 0, bounds.gradients],
  ];
  // Also where the figure is NaN.
  const off = compared.find(([, found, bound]) => !(found <= bound));
  if (off === undefined) return Effect.void;
  const [what, found, bound] = off;
  return Effect.fail(
    new NotExact({ what, needed: bound.toExponential(1), found: found.toExponential(1) }),
  );
};
