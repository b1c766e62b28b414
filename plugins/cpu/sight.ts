/**
 * What the rows of a chunk see of a rectangle, so that products skip what nobody sees and masks are computed only
 * where rows differ.
 *
 * @module
 */
import type { Rectangle } from "./job.ts";
import type { Softmax } from "./softmax.ts";

/** The rows that a chunk and a rectangle have in common, and the keys that these see. */
export interface Sight {
  /** Rows of the shard: from, to. */
  readonly from: number;
  readonly to: number;
  /** Keys of the rectangle of which some row sees any: first, end. */
  readonly first: number;
  readonly end: number;
  /** Whether some row sees less than the keys `first` … `end − 1` of these. */
  readonly masked: (first: number, end: number) => boolean;
}

/** What the rows `from` … `to − 1` of the shard see of a rectangle; undefined where that is nothing. */
export const sightOf = (rectangle: Rectangle, from: number, to: number): Sight | undefined => {
  const { row, rows, columns, bounds } = rectangle;
  from = Math.max(from, row);
  to = Math.min(to, row + rows);
  if (from >= to) return;
  if (bounds === undefined) return { from, to, first: 0, end: columns, masked: () => false };
  let [first, end, lastLo, firstHi] = [columns, 0, 0, columns];
  for (let i = (from - row) * 2; i < (to - row) * 2; i += 2) {
    const [lo, hi] = [bounds[i]!, bounds[i + 1]!];
    if (lo < hi) {
      first = Math.min(first, lo);
      end = Math.max(end, hi);
    }
    lastLo = Math.max(lastLo, lo);
    firstHi = Math.min(firstHi, hi);
  }
  if (first >= end) return;
  return { from, to, first, end, masked: (lo, hi) => lastLo > lo || firstHi < hi };
};

/** Tells the softmax what the rows see of the keys `first` … `end − 1` of a rectangle. */
export const writeMask = (
  { lo, hi }: Softmax,
  { row, bounds }: Rectangle,
  { from, to }: Sight,
  first: number,
  end: number,
): void => {
  for (let i = 0; i < to - from; i++) {
    const at = (from + i - row) * 2;
    lo.values[i] = Math.min(Math.max(bounds![at]! - first, 0), end - first);
    hi.values[i] = Math.min(Math.max(bounds![at + 1]! - first, 0), end - first);
  }
};
