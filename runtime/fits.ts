/**
 * What a request to a kernel must be, whatever the device. Kernels do not look again: one that reads or writes beyond a
 * tensor is no error on any of them.
 *
 * @module
 */
import { elementBytes } from "./dtype.ts";
import { upSizeOf, widthOf } from "./latent.ts";
import type { KeyValues, Outcome, Queries, Tile } from "./kernel.ts";
import { type Band, unbounded } from "./mask.ts";
import { positionAt, type Span } from "./span.ts";

/** What remains of queries when they are on the device. */
export type Shape = Omit<Queries, "bytes">;

const assertSize = (what: string, announced: number, found: number): void => {
  if (announced === found) return;
  throw new Error(`${what} of ${announced} bytes was announced, ${found} came`);
};

const assertWhole = (what: string, least: number, found: number): void => {
  if (Number.isInteger(found) && found >= least) return;
  throw new Error(`${what} must be a whole number from ${least} on: found ${found}`);
};

/** Throws where a shard cannot be computed, or has another size than its shape says. */
export const assertQueries = (queries: Queries): void => {
  const { batch, heads, kvHeads, headDim, scale, tokens, dtype, bytes, latent } = queries;
  assertWhole("the batch size", 1, batch);
  assertWhole("the number of query heads", 1, heads);
  assertWhole("the number of KV heads", 1, kvHeads);
  assertWhole("the number of query tokens", 0, tokens);
  if (heads % kvHeads !== 0) {
    throw new Error(
      `the query heads must be a multiple of the ${kvHeads} KV heads: found ${heads}`,
    );
  }
  assertWhole("the head dim", 0, headDim);
  if (!(headDim >= 4 && headDim <= 256 && headDim % 4 === 0)) {
    throw new Error(`the head dim must be a multiple of 4 from 4 to 256: found ${headDim}`);
  }
  if (!Number.isFinite(Math.fround(scale))) {
    throw new Error(`the score scale must be a finite float32: found ${scale}`);
  }
  if (latent !== undefined) {
    const elements = upSizeOf(latent, queries);
    assertSize("what makes keys of latents", 4 * elements, latent.up.byteLength);
  }
  assertSize("a shard", batch * tokens * heads * headDim * elementBytes(dtype), bytes.length);
};

/**
 * Throws where what a backward pass starts from has another size than its queries say, or a row has lost its
 * log-sum-exp: its gradient would be zero or no number, and look like any other zero. A row that saw no key has −∞.
 */
export const assertOutcome = (
  { batch, heads, headDim, tokens }: Shape,
  { o, lse, cotangent }: Outcome,
): void => {
  const size = batch * tokens * heads * headDim;
  const announced = [["o", o, size], ["dO", cotangent, size], ["lse", lse, batch * heads * tokens]];
  for (const [name, array, length] of announced as Array<[string, Float32Array, number]>) {
    assertSize(`a shard's ${name}`, 4 * length, array.byteLength);
    if (!(array instanceof Float32Array)) throw new Error(`a shard's ${name} must be float32`);
  }
  for (let i = 0; i < lse.length; i++) {
    if (lse[i]! < Infinity) continue;
    const found = `row ${i % tokens} has ${lse[i]}`;
    throw new Error(`a gradient needs the log-sum-exp of each row, and ${found}`);
  }
};

/** Throws where a block has another size than its tokens say, or a tile is not in the shard or the block. */
export const assertBlock = (
  { batch, kvHeads, headDim, tokens, attention, latent }: Shape,
  block: KeyValues,
  tiles: ReadonlyArray<Tile>,
  band: Band,
): void => {
  for (const side of ["back", "ahead"] as const) {
    if (Number.isInteger(band[side]) && Math.abs(band[side]) <= unbounded) continue;
    throw new Error(
      `a band must have whole numbers up to ${unbounded} in size: found ${side} ${band[side]}`,
    );
  }
  assertWhole("the number of a block's tokens", 0, block.tokens);
  const width = latent === undefined ? 2 * kvHeads * headDim : widthOf(latent);
  const size = batch * block.tokens * width * elementBytes(block.dtype);
  assertSize("a block", size, block.bytes.length);
  const assertSpan = (what: string, from: number, span: Span, most: number): void => {
    assertWhole(`the first of a tile's ${what}`, 0, from);
    assertWhole(`the number of a tile's ${what}`, 0, span.count);
    assertWhole(`the start of a span of ${what}`, 0, span.start);
    assertWhole(`the first token of a span of ${what}`, 0, span.first);
    assertWhole(`the run of a span of ${what}`, 1, span.run);
    assertWhole(`the stride of a span of ${what}`, span.run, span.stride);
    if (span.first + span.count > unbounded || span.stride > unbounded) {
      throw new Error(`a span of ${what} must have numbers below ${unbounded}`);
    }
    if (from + span.count > most) {
      throw new Error(
        `a tile must lie in the ${most} ${what} that there are: found ${from} … ${
          from + span.count - 1
        }`,
      );
    }
    if (span.count > 0 && positionAt(span, span.count - 1) >= unbounded) {
      throw new Error(`its positions end before ${unbounded}, and a tile goes beyond`);
    }
  };
  for (const { row, queries, column, keys, pairwise } of tiles) {
    if (pairwise === true && attention?.mask === undefined) {
      throw new Error("a tile asks for a mask of pairs, and its queries came without one");
    }
    assertSpan("query rows", row, queries, tokens);
    assertSpan("keys", column, keys, block.tokens);
  }
};
