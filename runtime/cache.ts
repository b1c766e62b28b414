/**
 * The keys and values of one sequence that one rank holds, of all layers: where they were made, they stay.
 *
 * @module
 */
import { type DType, elementBytes, encode } from "./dtype.ts";
import type { KeyValues } from "./kernel.ts";
import { follows } from "./placement.ts";
import { slice, type Span } from "./span.ts";

/** What the cache of a model has the shape of. */
export interface CacheShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly dtype: DType;
}

/** Bytes of keys and values of one token in all layers. */
export const tokenBytesOf = ({ layers, kvHeads, headDim, dtype }: CacheShape): number =>
  layers * 2 * kvHeads * headDim * elementBytes(dtype);

/** A stretch that grows token by token is cut when it has so many: until then it is copied for every use. */
const growing = 64;
/** A stretch in one piece, in bytes of one layer: what devices take at once. */
const largestPiece = 32 * 1024 * 1024;

/** Tokens at one span, K then V of each layer behind one another. */
interface Piece {
  span: Span;
  /** Tokens that there is memory for. */
  readonly capacity: number;
  readonly layers: ReadonlyArray<Uint8Array>;
}

/** Some keys and values of a layer. */
export interface Stretch {
  readonly span: Span;
  readonly keyValues: KeyValues;
}

/** What one rank holds of one sequence. */
export class Cache {
  readonly #shape: CacheShape;
  readonly #rowBytes: number;
  readonly #pieces: Array<Piece> = [];
  #tokens = 0;

  constructor(shape: CacheShape) {
    this.#shape = shape;
    this.#rowBytes = shape.kvHeads * shape.headDim * elementBytes(shape.dtype);
  }

  /** How many tokens are here. */
  get tokens(): number {
    return this.#tokens;
  }

  /** Bytes of the tokens that are here. */
  get bytes(): number {
    return this.#tokens * tokenBytesOf(this.#shape);
  }

  /** Makes room for tokens at these spans, which every layer then gets by `put`. */
  extend(spans: ReadonlyArray<Span>): void {
    const most = Math.max(1, Math.floor(largestPiece / (2 * this.#rowBytes)));
    for (const whole of spans) {
      this.#tokens += whole.count;
      const tail = this.#pieces.at(-1);
      const room = tail === undefined ? 0 : tail.capacity - tail.span.count;
      if (tail !== undefined && whole.count <= room && follows(tail.span, whole)) {
        tail.span = { ...tail.span, count: tail.span.count + whole.count };
        continue;
      }
      for (let from = 0; from < whole.count; from += most) {
        const span = slice(whole, from, Math.min(most, whole.count - from));
        const capacity = span.count === 1 ? growing : span.count;
        const layers = Array.from(
          { length: this.#shape.layers },
          () => new Uint8Array(new SharedArrayBuffer(2 * capacity * this.#rowBytes)),
        );
        this.#pieces.push({ span, capacity, layers });
      }
    }
  }

  /**
   * Fills the last rows of a layer, as many as there are.
   *
   * @param k [rows, kvHeads · headDim], as `v`.
   */
  put(layer: number, k: Float32Array, v: Float32Array): void {
    const { kvHeads, headDim, dtype } = this.#shape;
    const width = kvHeads * headDim;
    let rows = k.length / width;
    for (let i = this.#pieces.length - 1; rows > 0; i--) {
      const { span, capacity, layers } = this.#pieces[i]!;
      const count = Math.min(rows, span.count);
      rows -= count;
      for (const [values, begin] of [[k, 0], [v, capacity]] as const) {
        const bytes = encode(dtype, values.subarray(rows * width, (rows + count) * width));
        layers[layer]!.set(bytes, (begin + span.count - count) * this.#rowBytes);
      }
    }
  }

  /** The first tokens as a cache of their own; both have the same memory where neither writes to it any more. */
  first(tokens: number): Cache {
    if (tokens > this.#tokens) {
      throw new RangeError(`${tokens} tokens were asked for, and ${this.#tokens} are there`);
    }
    const cache = new Cache(this.#shape);
    for (const piece of this.#pieces) {
      const count = Math.min(tokens - cache.#tokens, piece.span.count);
      if (count === 0) break;
      cache.#tokens += count;
      cache.#pieces.push({
        ...{ span: slice(piece.span, 0, count), capacity: count },
        layers: piece.layers.map((_, layer) => this.#part(piece, layer, 0, count).keyValues.bytes),
      });
    }
    return cache;
  }

  /** All keys and values of a layer, in the order in which they came. */
  stretches(layer: number): ReadonlyArray<Stretch> {
    return this.#pieces.map((piece) => this.#part(piece, layer, 0, piece.span.count));
  }

  /** The memory of a layer's keys and of its values, in the order in which they came. */
  memory(layer: number): readonly [
    keys: ReadonlyArray<Uint8Array>,
    values: ReadonlyArray<Uint8Array>,
  ] {
    const halves = (half: number) =>
      this.#pieces.map(({ span, capacity, layers }) => {
        const begin = half * capacity * this.#rowBytes;
        return layers[layer]!.subarray(begin, begin + span.count * this.#rowBytes);
      });
    return [halves(0), halves(1)];
  }

  /** `count` tokens of a layer from row `row` on, which lie in one span. */
  rows(layer: number, row: number, count: number): Uint8Array {
    let from = row;
    const parts: Array<Uint8Array> = [];
    let left = count;
    for (const piece of this.#pieces) {
      if (from >= piece.span.count) {
        from -= piece.span.count;
        continue;
      }
      const here = Math.min(left, piece.span.count - from);
      if (here === count) return this.#part(piece, layer, from, count).keyValues.bytes;
      parts.push(this.#part(piece, layer, from, here).keyValues.bytes);
      left -= here;
      from = 0;
      if (left === 0) break;
    }
    const bytes = new Uint8Array(new SharedArrayBuffer(2 * count * this.#rowBytes));
    let at = 0;
    for (const part of parts) {
      const half = part.length / 2;
      bytes.set(part.subarray(0, half), at);
      bytes.set(part.subarray(half), bytes.length / 2 + at);
      at += half;
    }
    return bytes;
  }

  #part(piece: Piece, layer: number, from: number, tokens: number): Stretch {
    const { span, capacity } = piece;
    const all = piece.layers[layer]!;
    const whole = tokens === capacity;
    const bytes = whole ? all : new Uint8Array(new SharedArrayBuffer(2 * tokens * this.#rowBytes));
    if (!whole) {
      for (const half of [0, 1]) {
        const begin = (half * capacity + from) * this.#rowBytes;
        bytes.set(
          all.subarray(begin, begin + tokens * this.#rowBytes),
          half * tokens * this.#rowBytes,
        );
      }
    }
    return {
      span: slice(span, from, tokens),
      keyValues: { tokens, dtype: this.#shape.dtype, bytes },
    };
  }
}
