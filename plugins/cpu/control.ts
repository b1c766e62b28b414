/**
 * How the threads of a device share a job: one counter of items that are taken, one of items that are done. Threads
 * wait for each other by these words in shared memory, and never the device's own thread, which answers messages.
 *
 * @module
 */

const taken = 0, done = 1, failed = 2, events = 3;

/** The state of one job in shared memory. */
export class Control {
  readonly #words: Int32Array;
  readonly #items: number;

  constructor(words: Int32Array, items: number) {
    this.#words = words;
    this.#items = items;
  }

  /** The words of a new job. */
  static words = (): Int32Array => new Int32Array(new SharedArrayBuffer(16));

  /** The next item that nobody took, or undefined. */
  take(): number | undefined {
    const item = Atomics.add(this.#words, taken, 1);
    return item < this.#items ? item : undefined;
  }

  /** Counts an item as done; true where it was the last. */
  finish(): boolean {
    const last = Atomics.add(this.#words, done, 1) === this.#items - 1;
    if (last) this.wake();
    return last;
  }

  /** Lets those who wait look again. */
  wake(): void {
    Atomics.add(this.#words, events, 1);
    Atomics.notify(this.#words, events);
  }

  /** Lets nobody wait for an item that will not come. */
  fail(): void {
    Atomics.store(this.#words, failed, 1);
    this.wake();
  }

  get failed(): boolean {
    return Atomics.load(this.#words, failed) === 1;
  }

  /** Blocks this thread until `ready` holds, which somebody who calls `wake` makes true; false where the job failed. */
  wait(ready: () => boolean): boolean {
    while (true) {
      const seen = Atomics.load(this.#words, events);
      if (ready()) return true;
      if (this.failed) return false;
      Atomics.wait(this.#words, events, seen);
    }
  }

  /** Blocks this thread until every item is done. */
  waitForAll(): void {
    this.wait(() => Atomics.load(this.#words, done) >= this.#items);
  }
}
