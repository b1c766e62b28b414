/**
 * Which parts of a block's tiles a dispatch computes: what lies in one piece of the query rows and one piece of the
 * keys, and which of the two variants of the program it needs.
 *
 * @module
 */
import type { Tile } from "../../runtime/kernel.ts";
import { type Band, unbounded } from "../../runtime/mask.ts";
import { countUpTo, positionAt, slice, type Span } from "../../runtime/span.ts";
import type { VariantName } from "./program.ts";

/** Consecutive tokens that fit one buffer. */
export interface Piece {
  readonly from: number;
  readonly count: number;
}

/** A tile, or what of it lies in one piece of rows and one piece of keys, counted from the pieces' begin. */
export interface Part<R extends Piece> {
  readonly rows: R;
  readonly row: number;
  readonly querySpan: Span;
  readonly column: number;
  readonly keySpan: Span;
  readonly band: Band;
  /** Each of its pairs is asked about. */
  readonly pairwise: boolean;
}

/** As few pieces as possible, of equal length but for the last. */
export const piecesOf = (tokens: number, most: number): Array<Piece> => {
  const size = Math.ceil(tokens / Math.ceil(tokens / most));
  const pieces: Array<Piece> = [];
  for (let from = 0; from < tokens; from += size) {
    pieces.push({ from, count: Math.min(size, tokens - from) });
  }
  return pieces;
};

/** The tokens that a stretch from `from` on and a piece have in common. */
const overlap = (from: number, count: number, piece: Piece): Piece => {
  const begin = Math.max(from, piece.from);
  const end = Math.min(from + count, piece.from + piece.count);
  return { from: begin, count: Math.max(end - begin, 0) };
};

const everything: Band = { back: unbounded, ahead: unbounded };

/** What of the tiles concerns a piece of keys, tile by tile and in the order of rows. */
export const partsOf = <R extends Piece>(
  rows: ReadonlyArray<R>,
  keys: Piece,
  tiles: ReadonlyArray<Tile>,
  band: Band,
): ReadonlyArray<Part<R>> =>
  tiles.flatMap((tile) => {
    const columns = overlap(tile.column, tile.keys.count, keys);
    if (columns.count === 0) return [];
    return rows.flatMap((piece) => {
      const mine = overlap(tile.row, tile.queries.count, piece);
      if (mine.count === 0) return [];
      return [{
        rows: piece,
        row: mine.from - piece.from,
        querySpan: slice(tile.queries, mine.from - tile.row, mine.count),
        column: columns.from - keys.from,
        keySpan: slice(tile.keys, columns.from - tile.column, columns.count),
        band: tile.full ? everything : band,
        pairwise: tile.pairwise === true,
      }];
    });
  });

/**
 * The variant of the program that a part needs, if it has anything to compute. Counts as the program does, for workgroups
 * of `group` rows and a program that takes `clear` keys at once.
 */
export const variantFor = (
  { querySpan, keySpan, band, pairwise }: Part<Piece>,
  group: number,
  clear: number,
): VariantName | undefined => {
  let found: VariantName | undefined;
  for (let row = 0; row < querySpan.count; row += group) {
    const nearest = positionAt(querySpan, row);
    const farthest = positionAt(querySpan, Math.min(row + group, querySpan.count) - 1);
    const keysUpTo = (p: number) => countUpTo(keySpan, p);
    const all = keysUpTo(farthest + band.ahead) - keysUpTo(nearest - band.back - 1);
    const common = keysUpTo(nearest + band.ahead) - keysUpTo(farthest - band.back - 1);
    if (pairwise && all > 0) return "pairwise";
    if (all > Math.floor(Math.max(common, 0) / clear) * clear) return "masked";
    if (all > 0) found = "clear";
  }
  return found;
};

/** The bytes of a piece of a [batch, tokens, …] tensor, one stretch for each batch entry. */
export const eachStretch = <B extends ArrayBufferLike>(
  tensor: Uint8Array<B>,
  batch: number,
  tokens: number,
  { from, count }: Piece,
  visit: (batchEntry: number, bytes: Uint8Array<B>) => void,
): void => {
  const tokenBytes = tensor.length / (batch * tokens);
  for (let b = 0; b < batch; b++) {
    const begin = (b * tokens + from) * tokenBytes;
    visit(b, tensor.subarray(begin, begin + count * tokenBytes));
  }
};
