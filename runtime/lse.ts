/**
 * Log-sum-exp as a type of its own. Its base and its meaning are part of the type: natural logarithm, of the absolute
 * scores, not relative to a maximum. Merging values of another base is a wrong answer without an error.
 *
 * @module
 */
declare const natural: unique symbol;

/** Natural log-sum-exp of the scores that each query row has seen; −∞ for a row that saw none. */
export type Lse = Float32Array<ArrayBuffer> & { readonly [natural]: "ln Σ exp(score)" };

/** The value of one row from its running maximum `m` and sum `l` of exp(score − m). */
export const lseOf = (m: number, l: number): number => l === 0 ? -Infinity : m + Math.log(l);

/** Names an array as log-sum-exps. The caller vouches for base and meaning. */
export const asLse = (values: Float32Array<ArrayBuffer>): Lse => values as Lse;
