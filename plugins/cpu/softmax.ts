/**
 * `kernels/softmax/softmax.as`, compiled, and the memory in which it works: two tiles, numbers for each of their rows,
 * and a number for each of many vectors. Matrix products read and write the tiles where they lie.
 *
 * @module
 */
import type * as Functions from "../../kernels/softmax/simd.wasm";
import type { Matrix } from "./blas.ts";

/** Rows of a tile, at most. */
export const rowsAtOnce = 256;
/** Columns of a tile, at most: a tile of scores fits a core's second-level cache beside what a product packs. */
export const keysAtOnce = 256;

/** Elements of a tile. */
export const tileElements = rowsAtOnce * keysAtOnce;

/** An array in the module's memory. */
interface Area<A> {
  readonly pointer: number;
  readonly values: A;
}

/** What the first tile holds. */
export interface Scores {
  /** How many of the rows that `sums` and `tops` know come before the tile's. */
  readonly skip: number;
  readonly rows: number;
  readonly columns: number;
  /** Rows see what `lo` and `hi` say, or else all. */
  readonly masked: boolean;
}

/** The functions of one thread and the memory in which they work. */
export class Softmax {
  readonly #functions: typeof Functions;
  #end = 4096; // the compiler's own data comes before

  readonly tiles: readonly [Area<Float32Array>, Area<Float32Array>];
  /** One for each row: what it sees, and what the functions read or write of it. */
  readonly lo: Area<Int32Array>;
  readonly hi: Area<Int32Array>;
  readonly sums: Area<Float32Array>;
  readonly tops: Area<Float32Array>;
  readonly keeps: Area<Float32Array>;
  readonly #squares: Area<Float32Array>;

  private constructor(functions: typeof Functions) {
    this.#functions = functions;
    const area = (count: number) => this.#area(count, (...at) => new Float32Array(...at));
    const marks = () => this.#area(rowsAtOnce, (...at) => new Int32Array(...at));
    this.tiles = [area(tileElements), area(tileElements)];
    this.lo = marks();
    this.hi = marks();
    this.sums = area(rowsAtOnce);
    this.tops = area(rowsAtOnce);
    this.keeps = area(rowsAtOnce);
    this.#squares = area(tileElements / 4);
  }

  /** With fused multiply-add, where this engine has it, or without. */
  static async load(): Promise<Softmax> {
    const functions = await import("../../kernels/softmax/relaxed.wasm")
      .catch(() => import("../../kernels/softmax/simd.wasm"));
    return new Softmax(functions);
  }

  #area<A>(count: number, view: (...at: [ArrayBufferLike, number, number]) => A): Area<A> {
    const pointer = this.#end;
    this.#end += Math.ceil(count * 4 / 16) * 16;
    return { pointer, values: view(this.#functions.memory.buffer, pointer, count) };
  }

  /** A tile as an operand of products. */
  matrix(tile: 0 | 1, turned = false): Matrix {
    return { at: this.tiles[tile].values, stride: keysAtOnce, turned };
  }

  #arguments({ rows, columns, masked }: Scores) {
    const [lo, hi] = masked ? [this.lo.pointer, this.hi.pointer] : [0, 0];
    return [rows, columns, keysAtOnce, lo, hi] as const;
  }

  /** Scores of at most 88 in size become weights, whose sums are added to `sums`. */
  weigh(of: Scores): void {
    const sums = this.sums.pointer + of.skip * 4;
    this.#functions.weigh(this.tiles[0].pointer, ...this.#arguments(of), sums);
  }

  /** The same for scores of any size and with `tops`; true where what was gathered is to be multiplied by `keeps`. */
  weighWithTops(of: Scores): boolean {
    const [sums, tops] = [this.sums, this.tops].map(({ pointer }) => pointer + of.skip * 4);
    const outcome = [sums!, tops!, this.keeps.pointer] as const;
    const [tile] = this.tiles;
    return this.#functions.weighWithTops(tile.pointer, ...this.#arguments(of), ...outcome) !== 0;
  }

  /** Scores and dO·v in the two tiles become P and dS, with the rows' lse in `tops` and their D in `sums`. */
  gradients(of: Scores): void {
    const [scores, products] = this.tiles;
    const rest = [this.tops.pointer, this.sums.pointer] as const;
    this.#functions.gradients(scores.pointer, products.pointer, ...this.#arguments(of), ...rest);
  }

  /** The squared lengths of the first vectors in the first tile. */
  squares(count: number, width: number): Float32Array {
    this.#functions.squares(this.tiles[0].pointer, count, width, this.#squares.pointer);
    return this.#squares.values;
  }

  /** 16-bit numbers in the second tile become float32 numbers in the first. */
  widen(dtype: "f16" | "bf16", count: number): void {
    const { widenF16, widenBf16 } = this.#functions;
    const widen = dtype === "f16" ? widenF16 : widenBf16;
    widen(this.tiles[1].pointer, this.tiles[0].pointer, count);
  }
}
