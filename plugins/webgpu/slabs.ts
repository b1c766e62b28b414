/**
 * What of a part of a tile the backward pass computes in one dispatch. Between two passes the dS of a slab is written
 * down, and there is only so much room; in a single pass no two workgroups may add to the same rows of dq.
 *
 * @module
 */
import { pairsBetween } from "../../runtime/mask.ts";
import { slice } from "../../runtime/span.ts";
import { type Part, type Piece, piecesOf } from "./parts.ts";

/** Rows and keys of a part, for some of the (batch entry, key head) pairs, counted through [batch, kvHeads]. */
export interface Slab<R extends Piece> {
  readonly part: Part<R>;
  readonly first: number;
  readonly count: number;
  /** Quads of rows, and whole workgroups of keys, of each query head. */
  readonly rowQuads: number;
  readonly width: number;
  /** From one quad of rows to the next. */
  readonly pitch: number;
  /** Which stretch of `rowQuads` each workgroup of a single pass has; 0 where there are two passes. */
  readonly turn: number;
}

/** What the slabs of a single pass must fit. */
export interface TurnSetting extends Pick<SlabSetting, "pairs" | "sharing" | "group"> {
  /** (Batch entry, key head) pairs of a slab, at most. */
  readonly mostPairs: number;
  /** Workgroups that a dispatch should have. */
  readonly workgroups: number;
}

/** What slabs must fit. */
export interface SlabSetting {
  /** (Batch entry, key head) pairs, and query heads that share a key head. */
  readonly pairs: number;
  readonly sharing: number;
  /** Keys of a workgroup: there is room for whole ones. */
  readonly group: number;
  /** Quads of dS for which there is room; a slab has those of one workgroup and one quad of rows in any case. */
  readonly room: number;
  /** Query heads of a slab, at most, unless more share one key head. */
  readonly mostHeads: number;
  /** Rows and keys of a slab, at most, but for a quad of rows and the keys of one workgroup. */
  readonly mostRows: number;
  readonly mostKeys: number;
  /** Quads of rows of all heads that share keys, at most. */
  readonly mostQuads: number;
}

/**
 * Between two quads of rows: three lines of a cache, whose sets are otherwise the same for all rows that the invocations
 * of a workgroup read at once.
 */
const gap = 12;

/** Rows of a slab of a single pass, at most, so that no sum is long. */
const mostRowsOnce = 2048;

/** Turns of the loop over the quads of rows of all heads that share keys: see `mostKeys` in `program.ts`. */
const mostTurns = 2 ** 15;

/** Cuts a part into slabs, and leaves out those of which no pair counts. */
export const slabsOf = <R extends Piece>(
  part: Part<R>,
  { pairs, sharing, group, room, mostHeads, mostRows, mostKeys, mostQuads }: SlabSetting,
): ReadonlyArray<Slab<R>> => {
  const { querySpan, keySpan } = part;
  const mine = Math.floor(room / sharing);
  const atLeastOne = (...limits: ReadonlyArray<number>) =>
    Math.max(1, Math.floor(Math.min(...limits)));
  const keys = group * atLeastOne(
    Math.ceil(Math.min(keySpan.count, mostKeys) / group),
    (mine - gap) / group,
  );
  const quads = atLeastOne(
    Math.ceil(Math.min(querySpan.count, mostRows) / 4),
    mostQuads / sharing,
    mine / (keys + gap),
  );
  const together = atLeastOne(mine / ((keys + gap) * quads), mostHeads / sharing);
  return piecesOf(querySpan.count, 4 * quads).flatMap((rows) =>
    piecesOf(keySpan.count, keys).flatMap((columns) => {
      const cut = cutOf(part, rows, columns);
      if (pairsBetween(cut.band, cut.querySpan, cut.keySpan) === 0) return [];
      const width = Math.ceil(columns.count / group) * group;
      return piecesOf(pairs, together).map(({ from, count }) => ({
        part: cut,
        first: from,
        count,
        rowQuads: Math.ceil(rows.count / 4),
        width,
        pitch: width + gap,
        turn: 0,
      }));
    })
  );
};

/**
 * Cuts a part into slabs of a single pass, and leaves out those of which no pair counts. A slab has as few workgroups of
 * keys as make enough of them with all heads; while one of them adds to a stretch of rows, the others are at other ones,
 * and in as many turns as there are stretches each has been at all of them. So nothing is added up by two at a time, and
 * always in the same order.
 */
export const turnsOf = <R extends Piece>(
  part: Part<R>,
  { pairs, sharing, group, mostPairs, workgroups }: TurnSetting,
): ReadonlyArray<Slab<R>> => {
  const together = Math.min(pairs, mostPairs);
  const mostGroups = Math.ceil(workgroups / together);
  const rowsAtOnce = Math.min(mostRowsOnce, 4 * Math.max(1, Math.floor(mostTurns / sharing)));
  return piecesOf(part.querySpan.count, rowsAtOnce).flatMap((rows) =>
    wholeGroups(part.keySpan.count, mostGroups * group).flatMap((columns) => {
      const cut = cutOf(part, rows, columns);
      if (pairsBetween(cut.band, cut.querySpan, cut.keySpan) === 0) return [];
      const groups = Math.ceil(columns.count / group);
      const turns = Array.from({ length: groups }, (_, turn) => turn);
      return piecesOf(pairs, together).flatMap(({ from, count }) =>
        turns.map((turn) => ({
          part: cut,
          first: from,
          count,
          rowQuads: Math.ceil(rows.count / 4 / groups),
          width: groups * group,
          pitch: 0,
          turn,
        }))
      );
    })
  );
};

/** Pieces of `size` and a rest. */
const wholeGroups = (tokens: number, size: number): ReadonlyArray<Piece> =>
  Array.from({ length: Math.ceil(tokens / size) }, (_, i) => ({
    from: i * size,
    count: Math.min(size, tokens - i * size),
  }));

/** Some rows and keys of a part. */
const cutOf = <R extends Piece>(part: Part<R>, rows: Piece, columns: Piece): Part<R> => ({
  ...part,
  row: part.row + rows.from,
  querySpan: slice(part.querySpan, rows.from, rows.count),
  column: part.column + columns.from,
  keySpan: slice(part.keySpan, columns.from, columns.count),
});
