/**
 * An attention as it crosses to a thread: functions do not cross, so that the thread loads the files of variants itself.
 * What they say of some pairs goes along, since a file may export another variant of the same name than was given.
 *
 * @module
 */
import type { Attention, Resolved, VariantSpec } from "./attention.ts";
import type { Shape } from "./variant.ts";

/** An attention as it crosses. */
export interface AttentionSpec {
  readonly specs: ReadonlyArray<VariantSpec>;
  readonly shape: Shape;
  /** By variant. */
  readonly said: ReadonlyArray<Said>;
}

/** How a variant is written, and what it says: the same text may close over other values. */
export interface Said {
  readonly text: string;
  readonly answers: ReadonlyArray<number>;
}

/** Pairs that are asked about, and elements of each table that are looked at. */
const asked = 256;

/** Numbers from 0 to 1 that are spread evenly, in several dimensions: a Kronecker sequence. */
const spread = (i: number, dimension: 2 | 3 | 5 | 7 | 11): number => i * Math.sqrt(dimension) % 1;

/** A pair in four is anywhere, the others are as often a token apart as a thousand: masks differ near the diagonal. */
const pairOf = ({ batch, heads, tokens }: Shape, i: number) => {
  const of = (count: number, share: number) => Math.floor(count * share);
  const q = of(tokens, spread(i, 2));
  const distance = Math.floor(tokens ** spread(i, 3));
  const near = q >= distance ? q - distance : Math.min(q + distance, tokens - 1);
  const k = i % 4 === 0 ? of(tokens, spread(i, 3)) : near;
  return [of(batch, spread(i, 5)), of(heads, spread(i, 7)), q, k] as const;
};

/** What is thrown is an answer as well. */
const answerOf = (ask: () => number | boolean): number => {
  try {
    return Number(ask());
  } catch {
    return NaN;
  }
};

/** What a variant says for tensors of a shape. */
export const saidOf = ({ definition, given }: Resolved, shape: Shape): Said => {
  const { name, defaults, precompute, wgsl } = definition;
  const [mask, score, slope] = [definition.mask, definition.score, definition.slope];
  const made = {
    mask: mask?.(given, shape),
    score: score?.(given, shape),
    slope: slope?.(given, shape),
  };
  const answers: Array<number> = [];
  for (const value of Object.values(given)) {
    if (typeof value === "number") answers.push(value);
    else {
      answers.push(value.length);
      for (let i = 0; i < Math.min(asked, value.length); i++) {
        answers.push(value[Math.floor(value.length * spread(i, 2))]!);
      }
    }
  }
  for (let i = 0; i < asked; i++) {
    const pair = pairOf(shape, i);
    const s = 16 * spread(i, 11) - 8;
    if (made.mask !== undefined) answers.push(answerOf(() => made.mask!(...pair)));
    if (made.score !== undefined) answers.push(answerOf(() => made.score!(s, ...pair)));
    if (made.slope !== undefined) answers.push(answerOf(() => made.slope!(s, ...pair)));
  }
  const text = [name, defaults, precompute?.from, mask, score, slope, JSON.stringify(wgsl)];
  return { text: text.join("\n"), answers };
};

/** What to send of an attention. */
export const specOf = ({ specs, shape, variants }: Attention): AttentionSpec => ({
  specs,
  shape,
  said: variants.map((variant) => saidOf(variant, shape)),
});
