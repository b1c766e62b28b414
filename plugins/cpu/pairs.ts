/**
 * What variants say of single pairs, asked one by one: masks that no band can say, and scores. Ten times slower than the
 * softmax of whole tiles, and therefore only for those that need it.
 *
 * @module
 */
import { type Attention, noNumber } from "../../runtime/attention.ts";
import { positionAt } from "../../runtime/span.ts";
import type { Rectangle } from "./job.ts";
import type { Part } from "./sight.ts";
import { keysAtOnce, type Softmax, tileElements } from "./softmax.ts";

/** One part of a rectangle, of one head. */
export interface Pairs {
  readonly rectangle: Rectangle;
  readonly part: Part;
  readonly b: number;
  readonly h: number;
}

/** Asks an attention about the tiles of a thread. */
export class Asker {
  readonly #attention: Attention;
  readonly #softmax: Softmax;
  /** By element of a tile: the slope of its score, and whether its pair counts. */
  readonly #slopes = new Float32Array(tileElements);
  readonly #seen = new Uint8Array(tileElements);
  /** Positions of the keys of a part. */
  readonly #keys = new Int32Array(keysAtOnce);

  constructor(attention: Attention, softmax: Softmax) {
    this.#attention = attention;
    this.#softmax = softmax;
  }

  /** It changes scores, so that nobody knows how large they are. */
  get scores(): boolean {
    return this.#attention.score !== undefined;
  }

  /** Makes the scores of the first tile what variants say, and notes which pairs count. */
  ask({ rectangle, part, b, h }: Pairs, slopes = false): void {
    const { score, slope } = this.#attention;
    const mask = rectangle.pairwise === true ? this.#attention.mask! : undefined;
    const { lo, hi, tiles: [{ values: tile }] } = this.#softmax;
    const { from, to, first, end, masked } = part;
    for (let j = 0; j < end - first; j++) this.#keys[j] = positionAt(rectangle.keys, first + j);
    if (mask !== undefined) this.#seen.fill(0, 0, (to - from) * keysAtOnce);
    for (let i = 0; i < to - from; i++) {
      const q = positionAt(rectangle.queries, from + i - rectangle.row);
      const [begin, stop] = masked ? [lo.values[i]!, hi.values[i]!] : [0, end - first];
      for (let j = begin, at = i * keysAtOnce + begin; j < stop; j++, at++) {
        const k = this.#keys[j]!;
        if (mask !== undefined) {
          if (!mask(b, h, q, k)) continue;
          this.#seen[at] = 1;
        }
        if (score === undefined) continue;
        const s = tile[at]!;
        if (slopes) this.#slopes[at] = slope!(s, b, h, q, k);
        const made = score(s, b, h, q, k);
        if (typeof made !== "number" || made !== made && s === s) {
          throw noNumber(this.#attention, [b, h, q, k]);
        }
        tile[at] = made;
      }
    }
  }

  /** As `Softmax.weighWithTops`, for the pairs that count. */
  weigh({ part: { from, to, first, end } }: Pairs, skip: number): boolean {
    const { tiles: [{ values: tile }], sums, tops, keeps } = this.#softmax;
    let rescaled = false;
    for (let i = 0; i < to - from; i++) {
      const [row, stop] = [i * keysAtOnce, i * keysAtOnce + end - first];
      let sum = sums.values[skip + i]!;
      const before = sum === 0 ? -Infinity : tops.values[skip + i]!;
      let top = before, count = 0;
      for (let at = row; at < stop; at++) {
        if (this.#seen[at] === 0) continue;
        count++;
        if (!(tile[at]! <= top)) top = tile[at]!;
      }
      keeps.values[i] = 1;
      if (count === 0) {
        tile.fill(0, row, stop);
        continue;
      }
      if (before !== -Infinity && top !== before) {
        const keep = Math.exp(before - top);
        sum *= keep;
        keeps.values[i] = keep;
        rescaled = true;
      }
      for (let at = row; at < stop; at++) {
        tile[at] = this.#seen[at] === 0 ? 0 : Math.exp(tile[at]! - top);
        sum += tile[at]!;
      }
      sums.values[skip + i] = sum;
      tops.values[skip + i] = top;
    }
    return rescaled;
  }

  /** After `Softmax.gradients`: what scores do to dS, and nothing of the pairs that do not count. */
  correct({ rectangle: { pairwise }, part: { from, to, first, end } }: Pairs): void {
    const [{ values: p }, { values: ds }] = this.#softmax.tiles;
    for (let i = 0; i < to - from; i++) {
      for (let at = i * keysAtOnce; at < i * keysAtOnce + end - first; at++) {
        if (pairwise === true && this.#seen[at] === 0) {
          p[at] = 0;
          ds[at] = 0;
        } else if (this.scores && ds[at] !== 0) ds[at]! *= this.#slopes[at]!;
      }
    }
  }
}
