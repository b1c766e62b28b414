/**
 * OpenBLAS through the foreign function interface. Operands are views, so that a product reads and writes parts of
 * tensors where they lie: in shared memory or in that of a WebAssembly module. Views rather than pointers, because a
 * pointer would need the permission to use any library.
 *
 * @module
 */

/** The library's name, and where Debian has it. */
export const libraryName = "libopenblas.so.0";
export const libraryPackage = "libopenblas0-pthread";

const symbols = {
  // Order, two transpositions, m, n, k, α, A, its row length, B, its row length, β, C, its row length.
  // deno-fmt-ignore
  cblas_sgemm: {
    parameters: [
      "i32", "i32", "i32", "i32", "i32", "i32",
      "f32", "buffer", "i32", "buffer", "i32", "f32", "buffer", "i32",
    ],
    result: "void",
  },
  cblas_sscal: { parameters: ["i32", "f32", "buffer", "i32"], result: "void" },
  cblas_scopy: { parameters: ["i32", "pointer", "i32", "buffer", "i32"], result: "void" },
  openblas_set_num_threads: { parameters: ["i32"], result: "void" },
  openblas_get_config: { parameters: [], result: "pointer" },
} as const;

const rowMajor = 101, plain = 111, transposed = 112;

/** Numbers in memory; a view of bytes may begin anywhere. */
export type Numbers = Float32Array | Uint8Array;

/** A matrix in memory, row-major. */
export interface Matrix {
  /** Begins with the first element. */
  readonly at: Numbers;
  /** Elements from one row to the next. */
  readonly stride: number;
  /** Its transpose is meant. */
  readonly turned?: boolean;
}

/** What the device needs of the library. */
export interface Blas {
  /** C = scale · A B, or C += scale · A B where `add`; A is rows × inner, B inner × columns. */
  readonly product: (
    size: readonly [rows: number, columns: number, inner: number],
    scale: number,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    add: boolean,
  ) => void;
  /** Multiplies every number. */
  readonly multiply: (numbers: Float32Array, by: number) => void;
  /** Version and the kind of processor that its kernels are for: `OpenBLAS 0.3.21 for SkylakeX`. */
  readonly description: string;
}

/**
 * Opens the library. Every thread of the device opens it for itself, and calls compute on the thread that makes them.
 *
 * @throws Where there is no such library, or it is something else, or this process may not use it.
 */
export const openBlas = (path: string): Blas => {
  const { symbols: library } = Deno.dlopen(path, symbols);
  // The device has threads of its own; those of the library would wait for each other at every tile.
  library.openblas_set_num_threads(1);
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY Cooperlake MAX_THREADS=64", in an array of 256 characters.
  const config = new Uint8Array(256);
  library.cblas_scopy(config.length / 4, library.openblas_get_config(), 1, config, 1);
  const words = new TextDecoder().decode(config.subarray(0, config.indexOf(0))).split(" ");
  const core = words.findLast((word) => !word.includes("="));
  return {
    product: ([rows, columns, inner], scale, a, b, c, add) =>
      library.cblas_sgemm(
        rowMajor,
        a.turned ? transposed : plain,
        b.turned ? transposed : plain,
        rows,
        columns,
        inner,
        scale,
        unshared(a.at),
        a.stride,
        unshared(b.at),
        b.stride,
        add ? 1 : 0,
        unshared(c.at),
        c.stride,
      ),
    multiply: (numbers, by) => library.cblas_sscal(numbers.length, by, unshared(numbers), 1),
    description: `${words[0]} ${words[1]} for ${core}`,
  };
};

// The types exclude shared memory, which is what this is for.
const unshared = (numbers: Numbers) => numbers as Uint8Array<ArrayBuffer>;
