/**
 * What the rows of a chunk see of a rectangle, cut into tiles, so that products skip what nobody sees and masks are
 * computed only where rows differ.
 *
 * @module
 */
import type { Rectangle } from "./job.ts";
import { keysAtOnce, rowsAtOnce, type Softmax } from "./softmax.ts";

/** Columns of a tile in which rows differ: the narrower, the less of it is computed in vain. */
const maskedKeysAtOnce = keysAtOnce / 2;

/** The tokens of a chunk: from, to. */
export const chunk = (index: number, tokens: number): readonly [from: number, to: number] => [
  index * rowsAtOnce,
  Math.min((index + 1) * rowsAtOnce, tokens),
];

/** The rows that a chunk and a rectangle have in common, and the keys of which these see any. */
export interface Sight {
  readonly rectangle: Rectangle;
  /** Rows of the shard: from, to. */
  readonly from: number;
  readonly to: number;
  /** Keys of the rectangle: first, end. */
  readonly first: number;
  readonly end: number;
}

/** A part of a sight that fits the memory of a thread. */
export interface Part {
  readonly from: number;
  readonly to: number;
  readonly first: number;
  readonly end: number;
  /** Some row sees less than all of these keys. */
  readonly masked: boolean;
}

/** What the rows `from` … `to − 1` of the shard see of a rectangle; undefined where that is nothing. */
export const sightOf = (rectangle: Rectangle, from: number, to: number): Sight | undefined => {
  const { row, rows, columns, bounds } = rectangle;
  from = Math.max(from, row);
  to = Math.min(to, row + rows);
  if (from >= to) return;
  if (bounds === undefined) return { rectangle, from, to, first: 0, end: columns };
  let [first, end] = [columns, 0];
  for (let i = (from - row) * 2; i < (to - row) * 2; i += 2) {
    if (bounds[i]! >= bounds[i + 1]!) continue;
    first = Math.min(first, bounds[i]!);
    end = Math.max(end, bounds[i + 1]!);
  }
  return first < end ? { rectangle, from, to, first, end } : undefined;
};

/** The rows that see any of the keys `first` … `end − 1`. */
const partOf = ({ rectangle, from, to }: Sight, first: number, end: number): Part => {
  const { row, bounds } = rectangle;
  if (bounds === undefined) return { from, to, first, end, masked: false };
  let [begin, stop, masked] = [to, from, false];
  for (let i = from; i < to; i++) {
    const [lo, hi] = [bounds[(i - row) * 2]!, bounds[(i - row) * 2 + 1]!];
    if (lo < hi && lo < end && hi > first) {
      begin = Math.min(begin, i);
      stop = i + 1;
    }
    if (begin < stop) masked ||= lo > first || hi < end;
  }
  return { from: begin, to: stop, first, end, masked };
};

/** The tiles of which some row sees anything, for keys up to `end`. */
export function* partsOf(sight: Sight, first = sight.first, end = sight.end): Generator<Part> {
  for (let part; first < end; first = part.end) {
    part = partOf(sight, first, Math.min(first + keysAtOnce, end));
    if (part.masked) part = partOf(sight, first, Math.min(first + maskedKeysAtOnce, end));
    if (part.from < part.to) yield part;
  }
}

/** Tells the softmax what the rows of a part see of its keys. */
export const writeMask = (
  { lo, hi }: Softmax,
  { row, bounds }: Rectangle,
  { from, to, first, end }: Part,
): void => {
  for (let i = 0; i < to - from; i++) {
    const at = (from + i - row) * 2;
    lo.values[i] = Math.min(Math.max(bounds![at]! - first, 0), end - first);
    hi.values[i] = Math.min(Math.max(bounds![at + 1]! - first, 0), end - first);
  }
};
