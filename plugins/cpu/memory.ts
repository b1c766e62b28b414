/**
 * Shared memory for the threads, used again and again: new memory costs a page fault for every 4 KiB of it, at which
 * threads of one process wait for each other, and what is left to the garbage collector comes back late.
 *
 * @module
 */
import { sharedFloats } from "./job.ts";

/** Arrays that one user has until its end. */
export interface Loan {
  /** An array of zeros. */
  readonly take: (count: number) => Float32Array;
  /** The same promise. Where it is rejected some thread may still write, and nothing comes back. */
  readonly within: <A>(work: Promise<A>) => Promise<A>;
  /** Gives everything back. */
  readonly end: () => void;
}

/** The memory of one device. */
export class Memory {
  readonly #free = new Map<number, Array<Float32Array>>();

  lend(): Loan {
    const lent: Array<Float32Array> = [];
    let lost = false;
    return {
      take: (count) => {
        const array = this.#take(count);
        lent.push(array);
        return array;
      },
      within: async (work) => {
        try {
          return await work;
        } catch (cause) {
          lost = true;
          throw cause;
        }
      },
      end: () => {
        for (const array of lent.splice(0)) if (!lost) this.#give(array);
      },
    };
  }

  #take(count: number): Float32Array {
    const free = this.#free.get(count)?.pop();
    if (free !== undefined) return free.fill(0);
    // Other sizes than before: what fitted those is not kept for them.
    this.#free.clear();
    return sharedFloats(count);
  }

  #give(array: Float32Array): void {
    const free = this.#free.get(array.length) ?? [];
    free.push(array);
    this.#free.set(array.length, free);
  }
}

/** A copy that is the caller's own. */
export const copyOf = (array: Float32Array): Float32Array<ArrayBuffer> => {
  const copy = new Float32Array(array.length); // and not of the array, which takes ten times as long
  copy.set(array);
  return copy;
};
