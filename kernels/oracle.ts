/**
 * The independent judge: attention in float64, twice. It shares no code with the kernels, the spans or the merge that
 * it judges; a mask is a comparison of two global positions.
 *
 * @module
 */
import type { PairMask, PairScore } from "../runtime/variant.ts";

/** Outputs and natural log-sum-exps in float64; 0 and −∞ where a row saw no key. */
export interface Judgement {
  readonly o: Float64Array<ArrayBuffer>;
  readonly lse: Float64Array<ArrayBuffer>;
}

/** Which pairs count, and what becomes of their scores; in the plainest form that there is. */
export interface Rules {
  readonly sees: PairMask;
  readonly score?: PairScore;
  /** The derivative of `score` by its first argument. */
  readonly slope?: PairScore;
  /** The logit of one more key without a value. */
  readonly sink?: (h: number) => number;
}

type Floats = Float32Array | Float64Array;

/** What is to be judged. */
export interface Judged {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly rules: Rules;
}

/**
 * Dense attention in two passes, written as naively as it can be: `q` [batch, tokens, heads, headDim], `k` and `v`
 * [batch, tokens, kvHeads, headDim]; gives `o` [batch, tokens, heads, headDim] and `lse` [batch, heads, tokens].
 */
export const denseAttention = (
  problem: Judged,
  q: Float32Array,
  k: Floats,
  v: Floats,
): Judgement => {
  const { batch, tokens, heads, kvHeads, headDim, scale, rules } = problem;
  const o = new Float64Array(batch * tokens * heads * headDim);
  const lse = new Float64Array(batch * heads * tokens);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const g = Math.floor(h * kvHeads / heads);
      for (let i = 0; i < tokens; i++) {
        const row = ((b * tokens + i) * heads + h) * headDim;
        const scores: Array<number> = [];
        for (let j = 0; j < tokens; j++) {
          let score = 0;
          for (let c = 0; c < headDim; c++) {
            score += q[row + c]! * k[((b * tokens + j) * kvHeads + g) * headDim + c]! * scale;
          }
          if (rules.score !== undefined) score = rules.score(score, b, h, i, j);
          scores.push(rules.sees(b, h, i, j) ? score : -Infinity);
        }
        const sink = rules.sink?.(h) ?? -Infinity;
        const highest = scores.reduce((a, x) => Math.max(a, x), sink);
        const weights = scores.map((x) => highest === -Infinity ? 0 : Math.exp(x - highest));
        const below = sink === -Infinity ? 0 : Math.exp(sink - highest);
        const sum = weights.reduce((a, x) => a + x, below);
        lse[(b * heads + h) * tokens + i] = highest + Math.log(sum);
        if (sum === 0) continue;
        for (let c = 0; c < headDim; c++) {
          for (let j = 0; j < tokens; j++) {
            o[row + c]! += weights[j]! / sum * v[((b * tokens + j) * kvHeads + g) * headDim + c]!;
          }
        }
      }
    }
  }
  return { o, lse };
};

/** Gradients in float64, each shaped as its tensor. */
export interface Gradients {
  readonly dq: Float64Array<ArrayBuffer>;
  readonly dk: Float64Array<ArrayBuffer>;
  readonly dv: Float64Array<ArrayBuffer>;
}

/**
 * The gradients of `denseAttention` for the cotangent `dO` of `o`, by the chain rule as it stands in textbooks: through
 * the weighted sum, the softmax and the scores, row by row. It knows neither log-sum-exp nor row sums of dO·o, which
 * kernels use instead.
 */
export const denseGradients = (
  problem: Judged,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  dO: Float32Array,
): Gradients => {
  const { batch, tokens, heads, kvHeads, headDim, scale, rules } = problem;
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const g = Math.floor(h * kvHeads / heads);
      for (let i = 0; i < tokens; i++) {
        const row = ((b * tokens + i) * heads + h) * headDim;
        const seen: Array<number> = [];
        for (let j = 0; j < tokens; j++) {
          if (rules.sees(b, h, i, j)) seen.push(j);
        }
        const dot = (x: Float32Array, at: number, y: Float32Array, from: number) => {
          let sum = 0;
          for (let c = 0; c < headDim; c++) sum += x[at + c]! * y[from + c]!;
          return sum;
        };
        const keyOf = (j: number) => ((b * tokens + j) * kvHeads + g) * headDim;
        const products = seen.map((j) => dot(q, row, k, keyOf(j)) * scale);
        const scores = products.map((s, n) => rules.score?.(s, b, h, i, seen[n]!) ?? s);
        const sink = rules.sink?.(h) ?? -Infinity;
        const highest = scores.reduce((a, x) => Math.max(a, x), sink);
        const weights = scores.map((x) => Math.exp(x - highest));
        const below = sink === -Infinity ? 0 : Math.exp(sink - highest);
        const sum = weights.reduce((a, x) => a + x, below);
        const p = weights.map((x) => x / sum);
        const dp = seen.map((j) => dot(dO, row, v, keyOf(j)));
        const mean = dp.reduce((a, x, n) => a + p[n]! * x, 0);
        seen.forEach((j, n) => {
          const key = keyOf(j);
          const slope = rules.slope?.(products[n]!, b, h, i, j) ?? 1;
          const ds = p[n]! * (dp[n]! - mean) * slope * scale;
          for (let c = 0; c < headDim; c++) {
            dv[key + c]! += p[n]! * dO[row + c]!;
            dq[row + c]! += ds * k[key + c]!;
            dk[key + c]! += ds * q[row + c]!;
          }
        });
      }
    }
  }
  return { dq, dk, dv };
};

/**
 * Keys and values of all heads, each [tokens, heads, headDim], of latents [tokens, rank + rope]: in float64, component by
 * component. A value's components beyond its own are 0.
 */
export const expandedLatents = (
  { heads, headDim, rank, rope, value }: {
    readonly heads: number;
    readonly headDim: number;
    readonly rank: number;
    readonly rope: number;
    readonly value: number;
  },
  latents: Float32Array,
  up: Float32Array,
): { readonly k: Float64Array<ArrayBuffer>; readonly v: Float64Array<ArrayBuffer> } => {
  const [width, nope] = [rank + rope, headDim - rope];
  const tokens = latents.length / width;
  const k = new Float64Array(tokens * heads * headDim);
  const v = new Float64Array(tokens * heads * headDim);
  for (let t = 0; t < tokens; t++) {
    const made = (h: number, row: number) => {
      let sum = 0;
      for (let r = 0; r < rank; r++) {
        sum += up[(h * (nope + value) + row) * rank + r]! * latents[t * width + r]!;
      }
      return sum;
    };
    for (let h = 0; h < heads; h++) {
      const at = (t * heads + h) * headDim;
      for (let c = 0; c < nope; c++) k[at + c] = made(h, c);
      for (let c = 0; c < rope; c++) k[at + nope + c] = latents[t * width + rank + c]!;
      for (let c = 0; c < value; c++) v[at + c] = made(h, nope + c);
    }
  }
  return { k, v };
};

/** Query rows of one batch entry, picked by their global positions. */
export interface PickedRows {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly rules: Rules;
  /** Which batch entry they are of. */
  readonly entry: number;
  readonly positions: ReadonlyArray<number>;
  /** [rows, heads, headDim]. */
  readonly q: Float32Array;
}

/** Keys whose scores are held at once; their K and V fit a core's cache. */
const keysAtOnce = 64;

/**
 * Judges picked rows while the keys stream past: memory is that of the rows and of one chunk, so that the sequence
 * may be larger than memory.
 */
export class StreamingOracle {
  readonly #rows: PickedRows;
  /** Σ exp(score − highest) · v, [rows, heads, headDim]. */
  readonly #weighted: Float64Array<ArrayBuffer>;
  /** [heads, rows], as is `#sum` = Σ exp(score − highest). */
  readonly #highest: Float64Array<ArrayBuffer>;
  readonly #sum: Float64Array<ArrayBuffer>;

  constructor(rows: PickedRows) {
    this.#rows = rows;
    this.#weighted = new Float64Array(rows.positions.length * rows.heads * rows.headDim);
    this.#highest = new Float64Array(rows.positions.length * rows.heads).fill(-Infinity);
    this.#sum = new Float64Array(rows.positions.length * rows.heads);
  }

  /** Adds consecutive keys from global position `first` on: `k` and `v` [tokens, kvHeads, headDim]. */
  absorb(first: number, k: Floats, v: Floats): void {
    const { kvHeads, headDim, positions } = this.#rows;
    const tokens = k.length / (kvHeads * headDim);
    const keys = new Float64Array(keysAtOnce * headDim);
    const values = new Float64Array(keysAtOnce * headDim);
    for (let from = 0; from < tokens; from += keysAtOnce) {
      const count = Math.min(keysAtOnce, tokens - from);
      for (let g = 0; g < kvHeads; g++) {
        for (let j = 0; j < count; j++) {
          const at = ((from + j) * kvHeads + g) * headDim;
          keys.set(k.subarray(at, at + headDim), j * headDim);
          values.set(v.subarray(at, at + headDim), j * headDim);
        }
        for (let r = 0; r < positions.length; r++) {
          this.#addKeys(r, g, keys, values, first + from, count);
        }
      }
    }
  }

  /** `o` [rows, heads, headDim] and `lse` [heads, rows] over all keys absorbed so far. */
  finish(): Judgement {
    const { heads, headDim, positions } = this.#rows;
    const rows = positions.length;
    // The key without a value comes last.
    const sink = (i: number) => this.#rows.rules.sink?.(Math.floor(i / rows)) ?? -Infinity;
    const lse = this.#highest.map((highest, i) => {
      const [own, extra] = [highest + Math.log(this.#sum[i]!), sink(i)];
      const top = Math.max(own, extra);
      return top === -Infinity ? top : top + Math.log(Math.exp(own - top) + Math.exp(extra - top));
    });
    const o = this.#weighted.map((x, i) => {
      const [r, h] = [Math.floor(i / (heads * headDim)), Math.floor(i / headDim) % heads];
      const at = h * rows + r;
      return this.#sum[at] === 0 ? 0 : x * Math.exp(this.#highest[at]! - lse[at]!);
    });
    return { o, lse };
  }

  /** Adds those of `count` keys from position `first` on that row `r` sees, for every head that reads K/V head `g`. */
  #addKeys(
    r: number,
    g: number,
    keys: Float64Array,
    values: Float64Array,
    first: number,
    count: number,
  ): void {
    const { heads, kvHeads, headDim, scale, positions, q, entry, rules } = this.#rows;
    const { sees, score: scoreOf } = rules;
    const [weighted, group] = [this.#weighted, heads / kvHeads];
    const scores = new Float64Array(count);
    const seen = new Int32Array(count);
    const position = positions[r]!;
    for (let h = g * group; h < (g + 1) * group; h++) {
      const [row, state] = [(r * heads + h) * headDim, h * positions.length + r];
      const before = this.#highest[state]!;
      let highest = before;
      let n = 0;
      for (let j = 0; j < count; j++) {
        if (!sees(entry, h, position, first + j)) continue;
        const key = j * headDim;
        // Four sums, because one would wait for its own last addition at every step.
        let [a, b, c, d] = [0, 0, 0, 0];
        for (let i = 0; i < headDim; i += 4) {
          a += q[row + i]! * keys[key + i]!;
          b += q[row + i + 1]! * keys[key + i + 1]!;
          c += q[row + i + 2]! * keys[key + i + 2]!;
          d += q[row + i + 3]! * keys[key + i + 3]!;
        }
        let score = (a + b + (c + d)) * scale;
        if (scoreOf !== undefined) score = scoreOf(score, entry, h, position, first + j);
        seen[n] = key;
        scores[n++] = score;
        if (score > highest) highest = score;
      }
      if (n === 0) continue;
      const keep = Math.exp(before - highest);
      let sum = this.#sum[state]! * keep;
      if (keep !== 1) { for (let i = 0; i < headDim; i++) weighted[row + i]! *= keep; }
      for (let s = 0; s < n; s++) {
        const [value, weight] = [seen[s]!, Math.exp(scores[s]! - highest)];
        sum += weight;
        for (let i = 0; i < headDim; i++) weighted[row + i]! += weight * values[value + i]!;
      }
      this.#highest[state] = highest;
      this.#sum[state] = sum;
    }
  }
}
