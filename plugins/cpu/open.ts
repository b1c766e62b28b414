/**
 * Opens attention on the processor: the library, and threads to share the work.
 *
 * @module
 */
import { Unavailable } from "../../runtime/device_worker_guest.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import { findLibrary } from "../../runtime/library.ts";
import { libraryName, libraryPackage } from "./blas.ts";
import { CpuAttention } from "./kernel.ts";
import { Lifeline } from "./lifeline.ts";
import { Threads } from "./threads.ts";

/** What a caller may ask of the device. */
export interface CpuOptions {
  /** Threads that compute; OPENBLAS_NUM_THREADS or else one for each processor unless told. */
  readonly threads?: number;
  /** Path of OpenBLAS, where that is not one of the system's folders. */
  readonly library?: string;
}

/** What the Worker is told. */
export interface WorkerOptions extends CpuOptions {
  /** Words of the `Lifeline` by which the device ends. */
  readonly lifeline?: Int32Array;
}

const needed = `${libraryName} (Debian: ${libraryPackage})`;

const defaultThreads = (): number => {
  const wanted = Number(Deno.env.get("OPENBLAS_NUM_THREADS"));
  return Number.isInteger(wanted) && wanted > 0 ? wanted : navigator.hardwareConcurrency;
};

/** The kernel; `close` ends its threads, which otherwise live as long as the Worker that opened it. */
export const openCpu = async (
  {
    threads: count = defaultThreads(),
    library = findLibrary(libraryName),
    lifeline = new Lifeline().words,
  }: WorkerOptions = {},
): Promise<AttentionKernel & { readonly close: () => void }> => {
  if (!(Number.isInteger(count) && count >= 1)) {
    throw new Unavailable({ needed: "at least one thread, a whole number", found: `${count}` });
  }
  if (library === undefined) throw new Unavailable({ needed, found: `no ${libraryName}` });
  const { threads, description } = await Threads.open(count, { library, lifeline }).catch(
    (cause: Error) => {
      throw new Unavailable({ needed, found: cause.message });
    },
  );
  const attention = new CpuAttention(threads);
  return {
    info: {
      name: "cpu",
      backend: `${description}, ${count} ${count === 1 ? "thread" : "threads"}`,
      software: true,
      features: [],
      gradients: true,
      forms: "TypeScript",
      memory: Deno.systemMemoryInfo().total,
      largestTensor: 2 ** 31 - 1,
      largestHeadDim: 8192,
    },
    begin: (queries) => attention.begin(queries),
    beginBackward: (queries, outcome) => attention.beginBackward(queries, outcome),
    product: (product) => attention.product(product),
    linear: (linear) => attention.linear(linear),
    close: () => threads.close(),
  };
};
