/**
 * The judge of gradients where the sequence is too long for `denseGradients`: float64, for picked rows while the other
 * side streams past. It shares no code with the kernels that it judges.
 *
 * @module
 */
import { type PickedRows, StreamingOracle } from "./oracle.ts";

const dot = (x: ArrayLike<number>, at: number, y: ArrayLike<number>, from: number, n: number) => {
  let sum = 0;
  for (let c = 0; c < n; c++) sum += x[at + c]! * y[from + c]!;
  return sum;
};

/** dq of picked query rows. Every key streams past twice: once for o and lse, and then for dq. */
export class QueryGradientOracle {
  readonly #rows: PickedRows;
  readonly #cotangent: Float32Array;
  readonly #outputs: StreamingOracle;
  readonly #dq: Float64Array<ArrayBuffer>;
  readonly #squares: Float64Array<ArrayBuffer>;
  /** lse and D = Σ dO·o, [rows, heads]. */
  #known: { readonly lse: Float64Array; readonly d: Float64Array } | undefined;

  /** @param cotangent dO, [rows, heads, headDim], as `rows.q`. */
  constructor(rows: PickedRows, cotangent: Float32Array) {
    this.#rows = rows;
    this.#cotangent = cotangent;
    this.#outputs = new StreamingOracle(rows);
    this.#dq = new Float64Array(cotangent.length);
    this.#squares = new Float64Array(cotangent.length);
  }

  /** The first pass: consecutive keys from global position `first` on, `k` and `v` [tokens, kvHeads, headDim]. */
  prepare(first: number, k: Float32Array, v: Float32Array): void {
    this.#outputs.absorb(first, k, v);
  }

  /** The second pass, when every key was prepared. */
  absorb(first: number, k: Float32Array, v: Float32Array): void {
    const { heads, kvHeads, headDim, scale, rules, entry, positions, q } = this.#rows;
    const { lse, d } = this.#known ??= this.#finishOutputs();
    const tokens = k.length / (kvHeads * headDim);
    for (const [r, position] of positions.entries()) {
      for (let j = 0; j < tokens; j++) {
        for (let h = 0; h < heads; h++) {
          if (!rules.sees(entry, h, position, first + j)) continue;
          const pair = [entry, h, position, first + j] as const;
          const row = (r * heads + h) * headDim;
          const key = (j * kvHeads + Math.floor(h * kvHeads / heads)) * headDim;
          const s = dot(q, row, k, key, headDim) * scale;
          const p = Math.exp((rules.score?.(s, ...pair) ?? s) - lse[r * heads + h]!);
          const slope = (rules.slope?.(s, ...pair) ?? 1) * scale;
          const dp = dot(this.#cotangent, row, v, key, headDim);
          const ds = p * (dp - d[r * heads + h]!) * slope;
          const size = p * (Math.abs(dp) + Math.abs(d[r * heads + h]!)) * slope;
          for (let c = 0; c < headDim; c++) {
            this.#dq[row + c]! += ds * k[key + c]!;
            this.#squares[row + c]! += (size * k[key + c]!) ** 2;
          }
        }
      }
    }
  }

  /** dq [rows, heads, headDim]. */
  finish(): Float64Array<ArrayBuffer> {
    return this.#dq;
  }

  /** The squares of the terms of which each element of dq is the sum, as they are before dP − D. */
  get squares(): Float64Array<ArrayBuffer> {
    return this.#squares;
  }

  #finishOutputs() {
    const { heads, headDim, positions } = this.#rows;
    const { o, lse } = this.#outputs.finish();
    const rows = positions.length * heads;
    return {
      lse: Float64Array.from({ length: rows }, (_, i) => {
        const [r, h] = [Math.floor(i / heads), i % heads];
        return lse[h * positions.length + r]!;
      }),
      d: Float64Array.from(
        { length: rows },
        (_, i) => dot(this.#cotangent, i * headDim, o, i * headDim, headDim),
      ),
    };
  }
}

/** Keys of one batch entry, picked by their global positions. */
export interface PickedKeys extends Omit<PickedRows, "q"> {
  /** [keys, kvHeads, headDim], as `v`. */
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** What a query row gave: q and dO with its o and lse, which must be right. */
export interface QueryRows {
  /** [tokens, heads, headDim], as `cotangent` and `o`. */
  readonly q: Float32Array;
  readonly cotangent: Float32Array;
  readonly o: Float32Array;
  /** [heads, tokens]. */
  readonly lse: Float32Array;
}

/** dk and dv of picked keys, while every query row streams past. */
export class KeyGradientOracle {
  readonly #keys: PickedKeys;
  readonly #dk: Float64Array<ArrayBuffer>;
  readonly #dv: Float64Array<ArrayBuffer>;
  readonly #squares: Float64Array<ArrayBuffer>;

  constructor(keys: PickedKeys) {
    this.#keys = keys;
    this.#dk = new Float64Array(keys.k.length);
    this.#dv = new Float64Array(keys.k.length);
    this.#squares = new Float64Array(keys.k.length);
  }

  /** Adds consecutive query rows from global position `first` on. */
  absorb(first: number, { q, cotangent, o, lse }: QueryRows): void {
    const { heads, kvHeads, headDim, scale, rules, entry, positions, k, v } = this.#keys;
    const tokens = q.length / (heads * headDim);
    for (let i = 0; i < tokens; i++) {
      for (let h = 0; h < heads; h++) {
        const row = (i * heads + h) * headDim;
        const d = dot(cotangent, row, o, row, headDim);
        for (const [n, position] of positions.entries()) {
          if (!rules.sees(entry, h, first + i, position)) continue;
          const pair = [entry, h, first + i, position] as const;
          const key = (n * kvHeads + Math.floor(h * kvHeads / heads)) * headDim;
          const s = dot(q, row, k, key, headDim) * scale;
          const p = Math.exp((rules.score?.(s, ...pair) ?? s) - lse[h * tokens + i]!);
          const slope = (rules.slope?.(s, ...pair) ?? 1) * scale;
          const dp = dot(cotangent, row, v, key, headDim);
          const ds = p * (dp - d) * slope;
          const size = p * (Math.abs(dp) + Math.abs(d)) * slope;
          for (let c = 0; c < headDim; c++) {
            this.#dv[key + c]! += p * cotangent[row + c]!;
            this.#dk[key + c]! += ds * q[row + c]!;
            this.#squares[key + c]! += (size * q[row + c]!) ** 2;
          }
        }
      }
    }
  }

  /** dk and dv, [keys, kvHeads, headDim], and the squares of the terms of dk as they are before dP − D. */
  finish() {
    return { dk: this.#dk, dv: this.#dv, squares: this.#squares };
  }
}
