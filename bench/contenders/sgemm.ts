/**
 * The ceiling of CPUs: OpenBLAS multiplies two matrices with this many threads, `sgemm.ts 2`. It picks its code by the
 * CPU, or by `OPENBLAS_CORETYPE`.
 *
 * @module
 */
import { findLibrary } from "../../runtime/library.ts";
import { contend, timed } from "../contender.ts";

const symbols = {
  cblas_sgemm: {
    parameters: [
      ...["i32", "i32", "i32", "i32", "i32", "i32", "f32", "buffer", "i32", "buffer"] as const,
      ...["i32", "f32", "buffer", "i32"] as const,
    ],
    result: "void",
    nonblocking: true,
  },
  openblas_set_num_threads: { parameters: ["i32"], result: "void" },
  openblas_get_config: { parameters: [], result: "pointer" },
  openblas_get_corename: { parameters: [], result: "pointer" },
} as const;

/** Products of a sample, of which the fastest counts: a ceiling is what can be reached. */
const tries = 5;

/** CBLAS's names for row-major order and for a matrix as it is. */
const rowMajor = 101, asItIs = 111;

const text = (pointer: Deno.PointerValue): string => Deno.UnsafePointerView.getCString(pointer!);

await contend((job, { a, b }) => {
  if (job.kind !== "matmul") throw new Error("it only multiplies matrices");
  const threads = Number(Deno.args[0]);
  const path = findLibrary("libopenblas.so.0");
  if (path === undefined) throw new Error("OpenBLAS is missing: `deno task setup` installs it");
  const blas = Deno.dlopen(path, symbols).symbols;
  blas.openblas_set_num_threads(threads);
  const n = job.size;
  const c = new Float32Array(n * n);
  const multiply = () =>
    blas.cblas_sgemm(rowMajor, asItIs, asItIs, n, n, n, 1, a!, n, b!, n, 0, c, n);
  const version = /OpenBLAS \S+/.exec(text(blas.openblas_get_config()))![0];
  return Promise.resolve({
    about: `${version}, core type ${text(blas.openblas_get_corename())}, threads: ${threads}`,
    sample: async () => {
      let seconds = Infinity;
      for (let i = 0; i < tries; i++) seconds = Math.min(seconds, (await timed(multiply))[1]);
      return { seconds };
    },
    result: () => Promise.resolve({ c }),
  });
});
