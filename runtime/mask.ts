/**
 * Bands: query `q` may see key `k` when `q − back ≤ k ≤ q + ahead`, by global position. Full, causal and sliding-window
 * attention are three bands, and the same two numbers drive the plan, the kernels and the reference.
 *
 * @module
 */
import { countUpTo, positionAt, type Span } from "./span.ts";
import type { Range } from "./variant.ts";

/** How far a query sees, in tokens, to either side of its own position. */
export interface Band {
  readonly back: number;
  readonly ahead: number;
}

/** Farther than any sequence is long, and small enough that `position + unbounded` stays a 32-bit integer. */
export const unbounded = 2 ** 30;

/** Whether query `q` may see key `k`, by global position. */
export const allows = (band: Band, q: number, k: number): boolean =>
  k <= q + band.ahead && k >= q - band.back;

/** Whether no query of a range sees any key of another. */
export const apart = ({ back, ahead }: Band, queries: Range, keys: Range): boolean =>
  keys.first > queries.last + ahead || keys.last < queries.first - back;

/** How many of the (query, key) pairs between two spans the band allows: exact, in O(queries). */
export const pairsBetween = (band: Band, queries: Span, keys: Span): number => {
  const all = queries.count * keys.count;
  if (all === 0) return 0;
  const [q0, q1] = [positionAt(queries, 0), positionAt(queries, queries.count - 1)];
  const [k0, k1] = [positionAt(keys, 0), positionAt(keys, keys.count - 1)];
  if (apart(band, { first: q0, last: q1 }, { first: k0, last: k1 })) return 0;
  const [allBefore, allAfter] = [k0 >= q1 - band.back, k1 <= q0 + band.ahead];
  if (allBefore && allAfter) return all;
  let pairs = 0;
  for (let i = 0; i < queries.count; i++) {
    const q = positionAt(queries, i);
    const end = allAfter ? keys.count : countUpTo(keys, q + band.ahead);
    pairs += end - (allBefore ? 0 : countUpTo(keys, q - band.back - 1));
  }
  return pairs;
};
