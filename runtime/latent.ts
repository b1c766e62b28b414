/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): of each token one latent travels, of which every rank makes
 * the keys and values of all heads, or whose making it absorbs into its queries.
 *
 * Key h of a token is W_K[h] · c beside the rope part that all heads share, value h is W_V[h] · c, with c the first `rank`
 * components of what travels. So q[h] · k[h] = (W_K[h]ᵀ q[h]) · c + …, and Σ p · v[h] = W_V[h] Σ p · c: one key and value
 * for all heads, of as many components as travel.
 *
 * @module
 */

/** The sizes of a latent attention, whose queries have `headDim` components: first those without, then those with rope. */
export interface LatentShape {
  /** Components of c; a multiple of 4. */
  readonly rank: number;
  /** Components of the key that carry positions, the same for all heads; the last ones of each query. A multiple of 4. */
  readonly rope: number;
  /** Components of a value, and of each head of o; a multiple of 4, at most `headDim`. */
  readonly value: number;
}

/** The two ways to compute it. */
export type LatentForm = "expand" | "absorb";

/** A latent attention as devices get it. */
export interface Latent extends LatentShape {
  /** [heads, headDim − rope + value, rank]: W_K[h], then W_V[h]. May lie in shared memory. */
  readonly up: Float32Array;
  readonly form: LatentForm;
}

/** What sizes depend on beside the latent's own. */
interface Heads {
  readonly heads: number;
  readonly headDim: number;
}

/** Components that travel of a token. */
export const widthOf = ({ rank, rope }: LatentShape): number => rank + rope;

/** Rows of one head in `up`. */
export const upRowsOf = ({ rope, value }: LatentShape, { headDim }: Heads): number =>
  headDim - rope + value;

/** Elements of `up`. */
export const upSizeOf = (latent: LatentShape, of: Heads): number =>
  of.heads * upRowsOf(latent, of) * latent.rank;

/** What a rank has to do, in a batch entry. */
interface Work {
  readonly queries: number;
  readonly keys: number;
  /** Per head. */
  readonly pairs: number;
}

/** Floating-point operations of a rank in a batch entry, in each form. */
export const latentFlops = (
  latent: LatentShape,
  of: Heads,
  { queries, keys, pairs }: Work,
): Readonly<Record<LatentForm, number>> => {
  const up = 2 * upSizeOf(latent, of);
  return {
    expand: up * keys + 2 * of.heads * pairs * (of.headDim + latent.value),
    absorb: up * queries + 2 * of.heads * pairs * (widthOf(latent) + latent.rank),
  };
};
