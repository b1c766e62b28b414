/**
 * The contract of an attention variant: which (query, key) pairs count and what is done to their scores, by global token
 * index, in one file. Each form is given once in TypeScript, for the plan and for devices that compute on the CPU, and
 * once in WGSL.
 *
 * @module
 */
import { Schema } from "effect";
import type { Band } from "./mask.ts";

/** The version of this contract. A file says for which one it was written, and is refused by any other. */
export const contract = 1;

/** What a parameter may be, and what WGSL sees of it: a number, or `array<i32>` or `array<f32>` where it is a table. */
export interface Param<A> {
  readonly schema: Schema.Codec<A, unknown>;
  readonly element: "i32" | "f32";
  readonly table: boolean;
}

/** Parameters by name; their names are those by which WGSL knows them. */
export type Params = Readonly<Record<string, Param<unknown>>>;

/** The values of parameters. */
export type Values<P extends Params> = {
  readonly [K in keyof P]: P[K] extends Param<infer A> ? A : never;
};

/** Bounds of a whole number; by default those of a 32-bit integer. */
export interface Bounds {
  readonly least?: number;
  readonly most?: number;
}

const whole = ({ least = -(2 ** 31), most = 2 ** 31 - 1 }: Bounds = {}) =>
  Schema.Int.check(Schema.isGreaterThanOrEqualTo(least), Schema.isLessThanOrEqualTo(most));

/** A whole number; `i32` in WGSL. */
export const int = (bounds?: Bounds): Param<number> => ({
  schema: whole(bounds),
  element: "i32",
  table: false,
});

/** A finite number; `f32` in WGSL. */
export const float = (bounds: Bounds = {}): Param<number> => {
  const { least = -3.4028234663852886e38, most = 3.4028234663852886e38 } = bounds;
  return {
    schema: Schema.Finite.check(
      Schema.isGreaterThanOrEqualTo(least),
      Schema.isLessThanOrEqualTo(most),
    ),
    element: "f32",
    table: false,
  };
};

/** A table of whole numbers; `array<i32>` in WGSL. */
export const ints = (bounds?: Bounds): Param<ArrayLike<number>> => ({
  schema: Schema.Array(whole(bounds)),
  element: "i32",
  table: true,
});

/** A table of finite numbers of float32; `array<f32>` in WGSL. */
export const floats = (): Param<ArrayLike<number>> => ({
  schema: Schema.Array(float().schema),
  element: "f32",
  table: true,
});

/** The tensors that a variant is asked about. */
export interface Shape {
  readonly batch: number;
  /** Length of the sequence, S. */
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** May the pair of query `q` and key `k` count, in batch entry `b` and query head `h`? All are global indices from 0. */
export type PairMask = (b: number, h: number, q: number, k: number) => boolean;

/** A number for a pair and its score `s`, which the scale is part of. */
export type PairScore = (s: number, b: number, h: number, q: number, k: number) => number;

/** Consecutive token positions, both ends included. */
export interface Range {
  readonly first: number;
  readonly last: number;
}

/** How many of the pairs of two ranges count. */
export type Overlap = "none" | "some" | "all";

/** What a function of a variant is given first: the parameters, what was computed of them, and the shape. */
export type Given<P extends Params, D extends Params> = Values<P> & Values<D>;

/** A form as a function of the parameters, called once for all its pairs. */
type Of<P extends Params, D extends Params, F> = (given: Given<P, D>, shape: Shape) => F;

/** The bodies of WGSL functions. They see `b`, `h`, `q` and `k` (i32), `s` (f32), and the parameters by name. */
export interface WgslForms {
  /** Gives a `bool`. */
  readonly mask?: string;
  /** Gives an `f32`. */
  readonly score?: string;
  /** Gives an `f32`. */
  readonly slope?: string;
}

/** One way to attend. Everything but the first three is optional: what is absent changes nothing. */
export interface Definition<P extends Params = Params, D extends Params = Params> {
  /** Letters, digits and dashes. */
  readonly name: string;
  /** For which version of the contract it was written. */
  readonly contract: number;
  /** `import.meta.url`: threads that compute load this file, and take the definition from its default export. */
  readonly module: string;
  /** SHA-256 of its file, set by who loads it from one; absent of those that come with annulus. */
  readonly hash?: string;
  readonly params?: P;
  /** Tables that are computed of the parameters once, for both forms. */
  readonly precompute?: {
    readonly params: D;
    readonly from: (values: Values<P>, shape: Shape) => Values<D>;
  };
  /** Parameters that need not be given, for tensors of a shape. */
  readonly defaults?: (shape: Shape) => Partial<Values<P>>;
  /** What is wrong with the parameters for tensors of such a shape, as "what it needs: found what"; nothing if nothing is. */
  readonly refuse?: (values: Values<P>, shape: Shape) => string | undefined;
  readonly mask?: Of<P, D, PairMask>;
  readonly score?: Of<P, D, PairScore>;
  /** The derivative of `score` by `s`; without it there are no gradients of a variant that changes scores. */
  readonly slope?: Of<P, D, PairScore>;
  /** Per query head, the logit of one more key whose value is zero. */
  readonly sink?: Of<P, D, (h: number) => number>;
  /** Its mask differs between query heads or batch entries. */
  readonly perHead?: boolean;
  /** A band outside of which no pair counts. */
  readonly band?: Of<P, D, Band>;
  /** Every pair within the band counts, so that nobody needs to ask the mask. */
  readonly bandSaysAll?: boolean;
  /** How many pairs of two ranges count, from which tiles, steps and hops are skipped. "some" is always right. */
  readonly tile?: Of<P, D, (queries: Range, keys: Range) => Overlap>;
  readonly wgsl?: WgslForms;
  /** Parameters that `plugin check` tries on tensors of a shape; at least one set where there are any. */
  readonly examples?: (shape: Shape) => ReadonlyArray<Values<P>>;
}

/** A definition with its parameters. */
export interface Variant {
  readonly definition: Definition;
  /** As they are given, before anybody looked at them. */
  readonly params: Readonly<Record<string, unknown>>;
}

/** What a file of a variant exports by default: gives the variant for parameters. */
export interface VariantMaker<P extends Params = Params> {
  (...params: keyof P extends never ? [] : [Values<P>]): Variant;
  readonly definition: Definition;
}

/** Defines a variant; the default export of its file. */
export const defineAttention = <
  P extends Params = Record<never, never>,
  D extends Params = Record<never, never>,
>(definition: Definition<P, D>): VariantMaker<P> => {
  // What the functions are given was decoded by the schemas of their own parameters.
  const erased = definition as unknown as Definition;
  return Object.assign((...[params]: [] | [Values<P>]) => ({
    definition: erased,
    params: params ?? {},
  }), { definition: erased }) as VariantMaker<P>;
};
