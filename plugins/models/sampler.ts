/**
 * Which token comes next: the largest logit, or one at random by what of the distribution is left.
 *
 * In this order: repetition penalty (Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al. 2020), min-p
 * (Nguyen et al. 2024). Sums are in float64.
 *
 * @module
 */

/** How to choose. */
export interface Sampling {
  /** Divides logits; 0 takes the largest. */
  readonly temperature: number;
  /** Only so many of the most likely tokens; 0 for all. */
  readonly topK: number;
  /** Only the most likely tokens that have so much probability together; 1 for all. */
  readonly topP: number;
  /** Only tokens that are at least so likely as a share of the most likely one; 0 for all. */
  readonly minP: number;
  /** Divides positive logits of tokens that were there, and multiplies negative ones; 1 for nothing. */
  readonly repetitionPenalty: number;
  /** The same tokens for the same seed. */
  readonly seed: number;
}

/** The most likely token each time. */
export const greedy: Sampling = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 },
};

/** A token, and the logarithm of what the model gave it before anything was done to that. */
export interface Sampled {
  readonly id: number;
  readonly logprob: number;
}

/** Uniform numbers in [0, 1) from a seed: splitmix64. */
const uniform = (seed: number): () => number => {
  let state = BigInt.asUintN(64, BigInt(Math.trunc(seed)));
  return () => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
    let z = state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
  };
};

/** ln Σ exp(logit). */
export const logSum = (logits: Float32Array): number => {
  let top = -Infinity;
  for (const logit of logits) top = Math.max(top, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - top);
  return top + Math.log(sum);
};

/** The most likely tokens, `[id, logprob]`, from the first on; of equals the lower id first. */
export const mostLikely = (
  logits: Float32Array,
  count: number,
): ReadonlyArray<readonly [number, number]> => {
  const sum = logSum(logits);
  return [...logits.keys()]
    .sort((a, b) => logits[b]! - logits[a]! || a - b)
    .slice(0, count)
    .map((id) => [id, logits[id]! - sum]);
};

const largest = (logits: Float32Array): number => {
  let id = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[id]!) id = i;
  return id;
};

/** Chooses tokens of one sequence. */
export class Sampler {
  readonly #sampling: Sampling;
  readonly #next: () => number;

  constructor(sampling: Sampling) {
    this.#sampling = sampling;
    this.#next = uniform(sampling.seed);
  }

  /**
   * The next token.
   *
   * @param seen All tokens so far.
   */
  next(logits: Float32Array, seen: Iterable<number>): Sampled {
    const { temperature, topK, topP, minP, repetitionPenalty } = this.#sampling;
    const named = (id: number): Sampled => ({ id, logprob: logits[id]! - logSum(logits) });
    const left = logits.slice();
    if (repetitionPenalty !== 1) {
      for (const id of new Set(seen)) {
        left[id] = left[id]! > 0 ? left[id]! / repetitionPenalty : left[id]! * repetitionPenalty;
      }
    }
    if (temperature === 0) return named(largest(left));
    const order = [...left.keys()].sort((a, b) => left[b]! - left[a]! || a - b);
    const kept = topK > 0 ? order.slice(0, topK) : order;
    const top = left[kept[0]!]!;
    const weights = kept.map((id) => Math.exp((left[id]! - top) / temperature));
    const total = weights.reduce((a, b) => a + b, 0);
    let count = 0, sum = 0;
    for (const weight of weights) {
      // The most likely one always stays.
      if (count > 0 && (sum >= topP * total || weight < minP)) break;
      sum += weight;
      count++;
    }
    let at = this.#next() * sum;
    for (let i = 0; i < count; i++) {
      at -= weights[i]!;
      if (at < 0) return named(kept[i]!);
    }
    return named(kept[count - 1]!);
  }
}
