/**
 * Full, causal and windowed attention as tests name them, and any attention as the oracle judges it.
 *
 * @module
 */
import { Result } from "effect";
import type { Judged } from "../../kernels/oracle.ts";
import {
  blocks,
  causal as causalVariant,
  window as windowVariant,
} from "../../plugins/attention.ts";
import { resolveAttention } from "../../runtime/attention.ts";
import type { Band } from "../../runtime/mask.ts";
import type { Problem } from "../../runtime/plan.ts";
import type { Shape, Variant } from "../../runtime/variant.ts";
import { uniform } from "./random.ts";

/** Variants that compose. */
export type Mask = ReadonlyArray<Variant>;

export const full: Mask = [];
export const causal: Mask = [causalVariant()];
export const window = (size: number): Mask => [windowVariant({ size })];

/** Blocks of `size` tokens, of which those of a random table see each other, and each at least itself. */
export const randomBlocks = (tokens: number, size: number, seed: number): Mask => {
  const n = Math.ceil(tokens / size);
  const random = uniform(seed);
  const table = Array.from(
    { length: n * n },
    (_, i) => Number(i % n === Math.floor(i / n) || random() < 0.3),
  );
  return [blocks({ size, table })];
};

const anyShape: Shape = { batch: 1, tokens: 1, heads: 1, kvHeads: 1, headDim: 4 };

/** What variants say together; throws where they are wrong. */
export const resolved = (mask: Mask, shape: Shape = anyShape) =>
  Result.getOrThrow(resolveAttention(mask, shape));

/** The band of masks that do not depend on the shape. */
export const bandOf = (mask: Mask): Band => resolved(mask).band;

/** A problem for the oracle. */
export const judged = (problem: Problem): Judged => ({
  ...problem,
  rules: resolved(problem.attention, problem),
});

/** What a problem says of queries that know bands alone. */
export const withoutAttention = (
  { attention: _, latent: __, ...rest }: Problem,
): Omit<Problem, "attention" | "latent"> => rest;
