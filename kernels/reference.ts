/**
 * Attention in plain loops and float64: the readable form of what every device computes, and the device of last resort
 * where there is no GPU driver.
 *
 * @module
 */
import { noNumber } from "../runtime/attention.ts";
import { decode } from "../runtime/dtype.ts";
import type { Accumulation, AttentionKernel, KeyValues, Queries, Tile } from "../runtime/kernel.ts";
import { asLse, lseOf } from "../runtime/lse.ts";
import type { Band } from "../runtime/mask.ts";
import { countUpTo, positionAt, slice, type Span } from "../runtime/span.ts";
import { beginBackward } from "./reference_backward.ts";

/** The runs of neighbours among `lo` … `hi − 1` that are seen. */
export function* runsOf(
  seen: (j: number) => boolean,
  lo: number,
  hi: number,
): Generator<readonly [from: number, to: number]> {
  for (let from = lo; from < hi; from++) {
    if (!seen(from)) continue;
    let to = from + 1;
    while (to < hi && seen(to)) to++;
    yield [from, to];
    from = to;
  }
}

/** Keys whose scores are held at once; their K and V fit a core's cache. */
const keysAtOnce = 128;

const begin = (queries: Queries): Accumulation => {
  const { batch, heads, kvHeads, headDim, scale, tokens } = queries;
  const { mask, score: scoreOf } = queries.attention ?? {};
  const group = heads / kvHeads;
  const q = Float64Array.from(decode(queries.dtype, queries.bytes));

  // What each row has gathered: the highest score m, l = Σ exp(score − m) and õ = Σ exp(score − m) · v. Keeping m and
  // l apart, rather than m + ln l, is what is right where m is so large that ln l is lost in its rounding.
  const m = new Float64Array(batch * tokens * heads).fill(-Infinity);
  const l = new Float64Array(m.length);
  const weighted = new Float64Array(q.length);

  /** One head of one batch entry, [keysAtOnce, headDim]. */
  const keys = new Float64Array(keysAtOnce * headDim);
  const values = new Float64Array(keysAtOnce * headDim);
  const scores = new Float64Array(keysAtOnce);

  /** Where a query row and the keys that are held stand in the whole problem. */
  interface Place {
    readonly b: number;
    readonly h: number;
    readonly q: number;
    readonly keys: Span;
  }

  /** Adds `keys` and `values` from `lo` up to, but not including, `hi` to one query row of one head. */
  const addKeys = (row: number, lo: number, hi: number, place: Place): void => {
    const at = row * headDim;
    const before = m[row]!;
    let highest = before;
    for (let j = lo; j < hi; j++) {
      // Four sums, because one would wait for its own last addition at every step.
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = at, key = j * headDim; i < at + headDim; i += 4, key += 4) {
        a += q[i]! * keys[key]!;
        b += q[i + 1]! * keys[key + 1]!;
        c += q[i + 2]! * keys[key + 2]!;
        d += q[i + 3]! * keys[key + 3]!;
      }
      let score = (a + b + (c + d)) * scale;
      if (scoreOf !== undefined) {
        const pair = [place.b, place.h, place.q, positionAt(place.keys, j)] as const;
        const made = scoreOf(score, ...pair);
        const odd = typeof made !== "number" || Number.isNaN(made) && !Number.isNaN(score);
        if (odd) throw noNumber(queries.attention!, pair);
        score = made;
      }
      scores[j] = score;
      if (score > highest) highest = score;
    }
    if (highest > before) {
      const keep = Math.exp(before - highest);
      m[row] = highest;
      l[row]! *= keep;
      for (let i = at; i < at + headDim; i++) weighted[i]! *= keep;
    }
    for (let j = lo; j < hi; j++) {
      const weight = Math.exp(scores[j]! - highest);
      l[row]! += weight;
      for (let i = at, value = j * headDim; i < at + headDim; i++, value++) {
        weighted[i]! += weight * values[value]!;
      }
    }
  };

  /** Adds the tile's keys `first` … `first + count − 1`, which `keys` and `values` hold for K/V head `g`. */
  const addTile = (
    tile: Tile,
    band: Band,
    first: number,
    count: number,
    b: number,
    g: number,
  ): void => {
    for (let i = 0; i < tile.queries.count; i++) {
      let lo = 0, hi = count;
      if (!tile.full) {
        // Keys ascend, so that those which the band allows are neighbours.
        const position = positionAt(tile.queries, i);
        lo = Math.max(countUpTo(tile.keys, position - band.back - 1) - first, 0);
        hi = Math.min(countUpTo(tile.keys, position + band.ahead) - first, count);
        if (lo >= hi) continue;
      }
      const row = (b * tokens + tile.row + i) * heads;
      const q = positionAt(tile.queries, i);
      for (let h = g * group; h < (g + 1) * group; h++) {
        const place = { b, h, q, keys: slice(tile.keys, first, count) };
        const seen = (j: number) => mask!(b, h, q, positionAt(place.keys, j));
        if (tile.pairwise !== true) addKeys(row + h, lo, hi, place);
        else for (const run of runsOf(seen, lo, hi)) addKeys(row + h, ...run, place);
      }
    }
  };

  const absorb = (block: KeyValues, tiles: ReadonlyArray<Tile>, band: Band): void => {
    const decoded = decode(block.dtype, block.bytes);
    const [k, v] = [decoded.subarray(0, decoded.length / 2), decoded.subarray(decoded.length / 2)];
    for (const tile of tiles) {
      for (let b = 0; b < batch; b++) {
        for (let g = 0; g < kvHeads; g++) {
          for (let first = 0; first < tile.keys.count; first += keysAtOnce) {
            const count = Math.min(keysAtOnce, tile.keys.count - first);
            for (let j = 0; j < count; j++) {
              const token = b * block.tokens + tile.column + first + j;
              const at = (token * kvHeads + g) * headDim;
              keys.set(k.subarray(at, at + headDim), j * headDim);
              values.set(v.subarray(at, at + headDim), j * headDim);
            }
            addTile(tile, band, first, count, b, g);
          }
        }
      }
    }
  };

  const finish = () => {
    const o = new Float32Array(weighted.length);
    const lse = asLse(new Float32Array(m.length));
    for (let row = 0; row < m.length; row++) {
      const h = row % heads, token = Math.floor(row / heads) % tokens;
      const b = Math.floor(row / (heads * tokens));
      lse[(b * heads + h) * tokens + token] = lseOf(m[row]!, l[row]!);
      if (l[row] === 0) continue; // it saw no key
      for (let i = row * headDim; i < (row + 1) * headDim; i++) o[i] = weighted[i]! / l[row]!;
    }
    return { o, lse };
  };

  return { absorb, finish, close: () => {} }; // its memory is the garbage collector's
};

/** The reference kernel: any shape, one core, no device memory of its own. */
export const referenceKernel = (): AttentionKernel => ({
  info: {
    name: "reference",
    backend: "JavaScript",
    software: true,
    features: [],
    gradients: true,
    forms: "TypeScript",
    memory: Deno.systemMemoryInfo().total,
    largestTensor: 2 ** 31 - 1,
    largestHeadDim: 8192,
  },
  begin,
  beginBackward,
});
