/**
 * Tiles: what a shard of queries sees of a block of keys, as rectangles. Where a mask says of two ranges that none or all
 * of their pairs count, nobody asks it again; where it says "some", the rectangle is cut until it is small, and its pairs
 * are counted one by one. Where these would be too many it is cut as long as it says more of smaller rectangles.
 *
 * @module
 */
import type { Attention } from "./attention.ts";
import type { Tile } from "./kernel.ts";
import { VariantInvalid } from "./errors.ts";
import { allows, apart, pairsBetween } from "./mask.ts";
import { positionAt, slice, type Span } from "./span.ts";
import type { Range } from "./variant.ts";

/** Rows and keys of a rectangle that is not cut any more. */
const smallest = 64;
/** And rows in a long shard: each rectangle is a call of the device, and the more rows it has the less these cost. */
const smallestOfMany = 256;
const many = 4096;

/** Pairs of a plan that are asked for one by one, at most: a fraction of a second's work. */
const mostAsked = 2 ** 25;
/** A small rectangle whose pairs nobody counts is as much work as so many. */
const uncounted = 2 ** 8;
/** Rectangles that are cut when all that is spent. */
const mostCuts = 2 ** 20;

/** Rectangles and how many of their pairs count, per head and batch entry: the mean, where those differ. */
export interface Tiles {
  readonly tiles: ReadonlyArray<Tile>;
  readonly pairs: number;
}

/** Rows and keys of a span pair, counted from the begin of either. */
interface Cut {
  readonly row: number;
  readonly rows: number;
  readonly column: number;
  readonly columns: number;
  readonly state: "band" | "full" | "pairwise";
}

const rangeOf = (span: Span, from: number, count: number): Range => ({
  first: positionAt(span, from),
  last: positionAt(span, from + count - 1),
});

/**
 * What is left of the pairs that may be asked for; beyond them no pairs are counted, and a rectangle with some is cut only
 * where that looks worthwhile.
 */
export class Asking {
  readonly counts: boolean;
  #left = mostAsked;
  #cuts = mostCuts;
  /** Some rectangle's pairs were not counted: there are at most as many as the plan says. */
  exhausted = false;

  /** @param counts Or nobody wants to know how many pairs count, but which rectangles may have some. */

  constructor(counts = true) {
    this.counts = counts;
  }

  /** Whether so many more pairs may be asked for. */
  take(pairs: number): boolean {
    if (pairs > this.#left) this.exhausted = true;
    else this.#left -= pairs;
    return !this.exhausted;
  }

  /** Whether one more rectangle may be cut when pairs are not counted any more. */
  cut(): boolean {
    return this.#cuts-- > 0;
  }
}

/** The refusal of a variant that says what its mask does not, with the pair that shows it. */
const liar = (
  { masked }: Attention,
  needed: string,
  said: string,
  [b, h, q, k]: readonly [number, number, number, number],
) =>
  new VariantInvalid({
    variant: masked.join(" & "),
    needed,
    found: `${said} of batch entry ${b}, head ${h}, query ${q}, key ${k}`,
  });

/** Throws where one of a few pairs of two ranges is not what the variants say of all of them. */
const assertHonest = (
  attention: Attention,
  said: "none" | "all",
  queries: Range,
  keys: Range,
): void => {
  const { mask, countable, shape: { batch, heads } } = attention;
  if (!countable) return;
  const some = ({ first, last }: Range) => [first, Math.floor((first + last) / 2), last];
  for (const q of some(queries)) {
    for (const k of some(keys)) {
      for (const [b, h] of [[0, 0], [batch - 1, heads - 1]] as const) {
        if (mask!(b, h, q, k) === (said === "all")) continue;
        const found = `a tile that says "${said}"`;
        throw liar(attention, "tiles that say what its mask does", found, [b, h, q, k]);
      }
    }
  }
};

/** How many pairs of a small rectangle count, by asking for each. */
const count = (attention: Attention, queries: Span, keys: Span): number => {
  const { mask, band, shape, perHead } = attention;
  const { heads, batch } = shape;
  const positions = Int32Array.from({ length: keys.count }, (_, j) => positionAt(keys, j));
  let pairs = 0;
  if (perHead) {
    for (let i = 0; i < queries.count; i++) {
      const q = positionAt(queries, i);
      for (const k of positions) {
        if (!allows(band, q, k)) continue;
        for (let b = 0; b < batch; b++) {
          for (let h = 0; h < heads; h++) if (mask!(b, h, q, k)) pairs++;
        }
      }
    }
    return pairs / (heads * batch);
  }
  // Another head for each pair, and for the same key of the next query: a mask that differs between heads would be skipped
  // where the first sees nothing.
  let [b, h] = [0, 0];
  const turn = () => {
    if (++h < heads) return;
    h = 0;
    if (++b === batch) b = 0;
  };
  for (let i = 0; i < queries.count; i++) {
    const q = positionAt(queries, i);
    turn();
    for (const k of positions) {
      if (!allows(band, q, k)) continue;
      turn();
      const counts = mask!(0, 0, q, k);
      if (counts) pairs++;
      if (heads * batch > 1 && mask!(b, h, q, k) !== counts) {
        const needed = "perHead where its mask differs between heads or batch entries";
        throw liar(attention, needed, "another answer than the first head's", [b, h, q, k]);
      }
    }
  }
  return pairs;
};

/** Joins rectangles that are neighbours of the same kind: along the keys, then along the rows. */
const joined = (cuts: ReadonlyArray<Cut>): ReadonlyArray<Cut> => {
  const wide: Array<Cut> = [];
  for (
    const cut of cuts.toSorted((a, b) => a.row - b.row || a.rows - b.rows || a.column - b.column)
  ) {
    const last = wide.at(-1);
    if (
      last !== undefined && last.row === cut.row && last.rows === cut.rows &&
      last.state === cut.state && last.column + last.columns === cut.column
    ) {
      wide[wide.length - 1] = { ...last, columns: last.columns + cut.columns };
    } else wide.push(cut);
  }
  const tall = new Map<string, Cut>();
  const done: Array<Cut> = [];
  for (const cut of wide) {
    const key = `${cut.column} ${cut.columns} ${cut.state}`;
    const above = tall.get(key);
    if (above !== undefined && above.row + above.rows === cut.row) {
      tall.set(key, { ...above, rows: above.rows + cut.rows });
    } else {
      if (above !== undefined) done.push(above);
      tall.set(key, cut);
    }
  }
  return [...done, ...tall.values()].toSorted((a, b) => a.row - b.row || a.column - b.column);
};

/** Cuts two spans into rectangles. Gives how many pairs count. */
const cutUp = (
  attention: Attention,
  asking: Asking,
  queries: Span,
  keys: Span,
  into: Array<Cut>,
): number => {
  const { band, overlap, countable, perHead, shape } = attention;
  const smallestRows = queries.count < many ? smallest : smallestOfMany;
  /** Whether any of nine small rectangles in a large one has none or all of its pairs. */
  const worthwhile = (row: number, rows: number, column: number, columns: number): boolean => {
    const [high, wide] = [Math.min(rows, smallestRows), Math.min(columns, smallest)];
    const places = [0, 0.5, 1];
    return places.some((down) =>
      places.some((along) => {
        const from = row + Math.floor(down * (rows - high));
        const first = column + Math.floor(along * (columns - wide));
        return overlap(rangeOf(queries, from, high), rangeOf(keys, first, wide)) !== "some";
      })
    );
  };
  const visit = (row: number, rows: number, column: number, columns: number): number => {
    if (rows === 0 || columns === 0) return 0; // nobody asks about nothing
    const [some, others] = [slice(queries, row, rows), slice(keys, column, columns)];
    const ranges = [rangeOf(queries, row, rows), rangeOf(keys, column, columns)] as const;
    if (apart(band, ...ranges)) return 0;
    const found = overlap(...ranges);
    if (found !== "some") assertHonest(attention, found, ...ranges);
    if (found === "none") return 0;
    if (found === "some" && !countable) asking.exhausted = true;
    const small = rows <= smallestRows && columns <= smallest;
    const cuts = found === "some" && !small &&
      (!asking.exhausted || asking.cut() && worthwhile(row, rows, column, columns));
    if (cuts && (rows > smallestRows && rows >= columns || columns <= smallest)) {
      const half = Math.ceil(rows / 2 / smallestRows) * smallestRows;
      return visit(row, half, column, columns) + visit(row + half, rows - half, column, columns);
    }
    if (cuts) {
      const half = Math.ceil(columns / 2 / smallest) * smallest;
      return visit(row, rows, column, half) + visit(row, rows, column + half, columns - half);
    }
    const inBand = pairsBetween(band, some, others);
    if (inBand === 0) return 0;
    const add = (state: Cut["state"]) => void into.push({ row, rows, column, columns, state });
    const whole = inBand === rows * columns ? "full" : "band";
    if (found === "all") {
      add(whole);
      return inBand;
    }
    const each = perHead ? shape.heads * shape.batch : 1;
    const counted = small && asking.take(asking.counts ? inBand * each : uncounted) &&
      asking.counts;
    const pairs = counted ? count(attention, some, others) : inBand;
    const all = pairs === inBand && counted;
    if (pairs > 0) add(all ? whole : "pairwise");
    return pairs;
  };
  return visit(0, queries.count, 0, keys.count);
};

/**
 * The rectangles of a shard and a block in which pairs count.
 *
 * @throws {VariantInvalid} Where a variant is found out to say of tiles or heads what its mask does not.
 */
export const tilesOf = (
  attention: Attention,
  asking: Asking,
  shard: ReadonlyArray<Span>,
  keys: Span,
): Tiles => {
  const tiles: Array<Tile> = [];
  let pairs = 0, row = 0;
  for (const queries of shard) {
    if (attention.mask === undefined) {
      const allowed = pairsBetween(attention.band, queries, keys);
      const full = allowed === queries.count * keys.count;
      if (allowed > 0) tiles.push({ row, queries, column: 0, keys, full });
      pairs += allowed;
    } else {
      const cuts: Array<Cut> = [];
      pairs += cutUp(attention, asking, queries, keys, cuts);
      for (const { state, ...cut } of joined(cuts)) {
        tiles.push({
          row: row + cut.row,
          queries: slice(queries, cut.row, cut.rows),
          column: cut.column,
          keys: slice(keys, cut.column, cut.columns),
          full: state === "full",
          ...(state === "pairwise" ? { pairwise: true } : {}),
        });
      }
    }
    row += queries.count;
  }
  return { tiles, pairs };
};
