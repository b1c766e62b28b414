/**
 * What a backward pass knows of its query rows, on the device.
 *
 * @module
 */
import { bytesOf, decode } from "../../runtime/dtype.ts";
import type { Outcome, Queries } from "../../runtime/kernel.ts";
import type { Gpu } from "./gpu.ts";
import { eachStretch, type Piece, piecesOf } from "./parts.ts";
import { bufferMemory, type Room, textureMemory } from "./key_memory.ts";
import type { KeysIn } from "./ladder.ts";

/** A stretch of query rows with what is known of them, and their dq over scale. */
export interface Rows extends Piece {
  readonly outcomes: Room;
  readonly rows: Room;
  /** [batch, heads, count, headDim]. */
  readonly gradients: GPUBuffer;
}

/**
 * q times scale and dO of each head, token by token, as the programs read them, and (lse, D, 0, 0) of each row; all of
 * them 0 for a row that saw no key.
 */
export interface Prepared {
  readonly q: Float32Array;
  readonly dO: Float32Array;
  readonly outcomes: Float32Array;
}

/** Bytes of memory for what is prepared that is kept. */
const largestKept = 2 ** 26;

/** What is prepared, in memory that is used again: new memory is half of what it takes, for page faults. */
export class Preparation {
  #spare: Prepared | undefined;

  prepare(queries: Queries, { o, lse, cotangent }: Outcome): Prepared {
    const { batch, heads, headDim, tokens, scale } = queries;
    const given = decode(queries.dtype, queries.bytes);
    const prepared = this.#take(given.length, batch * heads * tokens);
    const { q, dO, outcomes } = prepared;
    for (let b = 0; b < batch; b++) {
      for (let h = 0; h < heads; h++) {
        for (let i = 0; i < tokens; i++) {
          const at = (b * heads + h) * tokens + i;
          const from = ((b * tokens + i) * heads + h) * headDim;
          if (lse[at] === -Infinity) {
            for (const x of [q, dO]) x.fill(0, at * headDim, (at + 1) * headDim);
            outcomes.fill(0, 4 * at, 4 * at + 2);
            continue;
          }
          outcomes[4 * at] = lse[at]!;
          outcomes[4 * at + 1] = placeHead(
            given,
            scale,
            cotangent,
            o,
            from,
            q,
            dO,
            at * headDim,
            headDim,
          );
        }
      }
    }
    return prepared;
  }

  #take(elements: number, rows: number): Prepared {
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare?.q.length === elements && spare.outcomes.length === 4 * rows) return spare;
    return {
      q: new Float32Array(elements),
      dO: new Float32Array(elements),
      outcomes: new Float32Array(4 * rows),
    };
  }

  /** Takes back what nobody reads any more. */
  give(prepared: Prepared): void {
    const { q, outcomes } = prepared;
    if (2 * q.byteLength + outcomes.byteLength <= largestKept) this.#spare = prepared;
  }
}

/**
 * Writes q and dO of one head of a token to where they belong. Gives its D. A function of its own, which engines
 * optimise at once.
 */
const placeHead = (
  given: Float32Array,
  scale: number,
  cotangent: Float32Array,
  o: Float32Array,
  from: number,
  q: Float32Array,
  dO: Float32Array,
  at: number,
  headDim: number,
): number => {
  let d = 0;
  for (let c = 0; c < headDim; c++) {
    const x = cotangent[from + c]!;
    q[at + c] = given[from + c]! * scale;
    dO[at + c] = x;
    d += x * o[from + c]!;
  }
  return d;
};

/** Uploads what is known of query rows, in pieces of up to `most` tokens. */
export const placeRows = async (
  gpu: Gpu,
  keysIn: KeysIn,
  most: number,
  { batch, heads, headDim, tokens }: Queries,
  { q, dO, outcomes }: Prepared,
): Promise<ReadonlyArray<Rows>> => {
  const pieces: Array<Rows> = [];
  const memory = (label: string) =>
    (keysIn === "texture" ? textureMemory : bufferMemory)(gpu.device, label);
  try {
    await gpu.run(() => {
      for (const { from, count } of piecesOf(tokens, most)) {
        const piece: Rows = {
          from,
          count,
          outcomes: memory("outcomes")({
            heads: batch * heads * count,
            headDim: 4,
            dtype: "f32",
          }),
          rows: memory("rows")({
            heads: 2 * batch * count * heads,
            headDim,
            dtype: "f32",
          }),
          gradients: gpu.device.createBuffer({
            label: "dq",
            size: batch * count * heads * headDim * 4,
            usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC,
          }),
        };
        pieces.push(piece);
        [q, dO].forEach((tensor, i) =>
          eachStretch(
            bytesOf(tensor),
            batch * heads,
            tokens,
            piece,
            (head, bytes) => piece.rows.write((i * batch * heads + head) * count, bytes),
          )
        );
        eachStretch(
          new Uint8Array(outcomes.buffer),
          batch * heads,
          tokens,
          piece,
          (row, bytes) => piece.outcomes.write(row * count, bytes),
        );
      }
    }, () => Promise.resolve()); // the queue has copied the bytes
  } catch (cause) {
    destroyRows(pieces);
    throw cause;
  }
  return pieces;
};

export const destroyRows = (pieces: ReadonlyArray<Rows>): void => {
  for (const { outcomes, rows, gradients } of pieces) {
    for (const memory of [outcomes, rows, gradients]) memory.destroy();
  }
};
