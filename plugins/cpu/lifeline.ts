/**
 * Two words in shared memory by which a device ends: a library that computes while its process exits crashes it, and
 * to terminate a Worker does not stop its thread at once. So threads are told to stop, and it is seen that they did.
 *
 * @module
 */

const ending = 0, busy = 1;

/** A thread in the middle of its work stops before the next product; only a hang takes as long. */
const stopsWithin = 5000;

/** What the threads of one device and its owner share. */
export class Lifeline {
  readonly words: Int32Array;

  constructor(words: Int32Array = new Int32Array(new SharedArrayBuffer(8))) {
    this.words = words;
  }

  /** The device ends: whoever works looks here before every call of the library, and makes no more. */
  get cut(): boolean {
    return Atomics.load(this.words, ending) === 1;
  }

  /** Does a thread's work. */
  hold(work: () => void): void {
    Atomics.add(this.words, busy, 1);
    try {
      work();
    } finally {
      Atomics.sub(this.words, busy, 1);
      Atomics.notify(this.words, busy);
    }
  }

  /** Ends the device; returns when no thread is at work any more that did not look. */
  async end(): Promise<void> {
    Atomics.store(this.words, ending, 1);
    const began = performance.now();
    for (let count; (count = Atomics.load(this.words, busy)) > 0;) {
      const left = stopsWithin - (performance.now() - began);
      if (left <= 0) return;
      await Atomics.waitAsync(this.words, busy, count, left).value;
    }
  }
}
