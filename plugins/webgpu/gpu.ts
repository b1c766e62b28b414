/**
 * A GPU device that does not fail in silence: WebGPU reports errors beside the calls that cause them, and goes on with
 * memory that was never written. Here each call that is refused, and each one after a loss, throws.
 *
 * @module
 */

import { contentOf } from "./read_back.ts";
import { SpareBuffers } from "./spare_buffers.ts";

const scopes = ["validation", "out-of-memory", "internal"] as const;

/** Work on a device, one piece after another. */
export class Gpu {
  readonly device: GPUDevice;
  #fault: string | undefined;
  readonly #lingering = new Set<Promise<unknown>>();
  /** When the work that was queued last is over. */
  #queued: Promise<unknown> = Promise.resolve();
  /** What comes back after all that was submitted. */
  readonly #last: SpareBuffers;

  constructor(device: GPUDevice) {
    this.device = device;
    this.#last = new SpareBuffers(device);
    device.addEventListener("uncapturederror", (event) => {
      this.#fault ??= (event as GPUUncapturedErrorEvent).error.message;
    });
    device.lost.then(({ reason, message }) => {
      this.#fault ??= `the device was lost: ${message || reason}`;
    });
  }

  /**
   * Calls `work`, which must not wait for anything, then waits `until` what it started is over; by default until the
   * device is idle. Throws the first error that the device reports.
   */
  async run<A>(
    work: () => A,
    until: (value: A) => Promise<unknown> = () => this.idle(),
  ): Promise<A> {
    this.throwFault();
    for (const scope of scopes) this.device.pushErrorScope(scope);
    const called = new Promise<A>((resolve) => resolve(work()));
    called.catch(() => {}); // it is waited for below
    const errors = scopes.map(() => this.device.popErrorScope());
    let value: A;
    try {
      // Calls throw because of what the device refused before, and do not name it.
      const refused = (await Promise.all(errors)).find((error) => error !== null);
      if (refused !== undefined) throw new Error(refused.message);
      value = await called;
      await until(value);
    } catch (cause) {
      // A loss makes calls fail without naming it, and is announced a turn later.
      await new Promise((resolve) => setTimeout(resolve));
      this.throwFault();
      throw cause;
    }
    this.throwFault();
    return value;
  }

  /** As `run`, and gives the contents of what `work` gives, memory of `resultBuffer`. */
  async read(work: () => ReadonlyArray<GPUBuffer>): Promise<ReadonlyArray<ArrayBuffer>> {
    let contents: ReadonlyArray<ArrayBuffer> = [];
    await this.run(work, async (results) => {
      contents = await this.contents(results);
    });
    return contents;
  }

  /** The contents of memory of `resultBuffer`, as part of what `run` waits for. */
  async contents(results: ReadonlyArray<GPUBuffer>): Promise<ReadonlyArray<ArrayBuffer>> {
    return await Promise.all(results.map((result) =>
      contentOf(result, (promise) => {
        this.#lingering.add(promise);
        promise.finally(() => this.#lingering.delete(promise)).catch(() => {});
      })
    ));
  }

  /**
   * As `run`, but waits only until the work that was queued before is over, so that the device always has the next
   * piece. Deno holds this thread until the device is idle: hence requests that are there already get a turn before that.
   */
  queue(work: () => void): Promise<void> {
    return this.run(work, async () => {
      await new Promise((resolve) => setTimeout(resolve));
      const before = this.#queued;
      this.#queued = this.idle();
      this.#queued.catch(() => {}); // whoever waits for it hears of it
      await before;
    });
  }

  /** Resolves when what was submitted is over. Not `onSubmittedWorkDone`, which takes Deno 10 ms longer than a result. */
  async idle(): Promise<void> {
    const last = this.#last.takeResult(4);
    const encoder = this.device.createCommandEncoder();
    encoder.clearBuffer(last);
    this.device.queue.submit([encoder.finish()]);
    try {
      await this.contents([last]);
      this.#last.giveResult(last);
    } catch (cause) {
      last.destroy();
      throw cause;
    }
  }

  /** Frees what the device holds; nothing can be computed any more. */
  async close(): Promise<void> {
    this.device.destroy();
    await this.device.lost;
    await Promise.allSettled([...this.#lingering, this.#queued]);
  }

  /** Throws what went wrong without any call having been told. */
  throwFault(): void {
    if (this.#fault !== undefined) throw new Error(this.#fault);
  }
}
