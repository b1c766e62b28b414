/**
 * What a block and its tiles must be for any program of this device.
 *
 * @module
 */
import { elementBytes } from "../../runtime/dtype.ts";
import type { KeyValues, Queries, Tile } from "../../runtime/kernel.ts";
import { unbounded } from "../../runtime/mask.ts";
import { positionAt } from "../../runtime/span.ts";

/** Throws where a block has another size than its tokens say, or a position is too far. */
export const assertFits = (
  { batch, kvHeads, headDim }: Queries,
  block: KeyValues,
  tiles: ReadonlyArray<Tile>,
): void => {
  const size = 2 * batch * block.tokens * kvHeads * headDim * elementBytes(block.dtype);
  if (block.bytes.length !== size) {
    throw new Error(`a block of ${size} bytes was announced, ${block.bytes.length} came`);
  }
  for (const { queries, keys } of tiles) {
    for (const span of [queries, keys]) {
      if (span.count > 0 && positionAt(span, span.count - 1) >= unbounded) {
        throw new Error(`its positions end before ${unbounded}, and a tile goes beyond`);
      }
    }
  }
};
