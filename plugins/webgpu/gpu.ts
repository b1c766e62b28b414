/**
 * A GPU device that does not fail in silence: WebGPU reports errors beside the calls that cause them, and goes on with
 * memory that was never written. Here each call that is refused, and each one after a loss, throws.
 *
 * @module
 */

const scopes = ["validation", "out-of-memory", "internal"] as const;

/** Work on a device, one piece after another. */
export class Gpu {
  readonly device: GPUDevice;
  #fault: string | undefined;
  /** When the work that was queued last is over. */
  #queued: Promise<unknown> = Promise.resolve();

  constructor(device: GPUDevice) {
    this.device = device;
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
    until: (value: A) => Promise<unknown> = () => this.device.queue.onSubmittedWorkDone(),
  ): Promise<A> {
    this.throwFault();
    for (const scope of scopes) this.device.pushErrorScope(scope);
    let value: A;
    let errors: ReadonlyArray<Promise<GPUError | null>> = [];
    try {
      value = work();
    } finally {
      errors = scopes.map(() => this.device.popErrorScope());
    }
    try {
      const refused = (await Promise.all(errors)).find((error) => error !== null);
      if (refused !== undefined) throw new Error(refused.message);
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

  /**
   * As `run`, but waits only until the work that was queued before is over, so that the device always has the next
   * piece. Deno holds this thread until the device is idle, and then lets the promise wait for another 10 ms: hence
   * requests that are there already get a turn before that, and the promise has until the next piece is queued.
   */
  queue(work: () => void): Promise<void> {
    return this.run(work, async () => {
      await new Promise((resolve) => setTimeout(resolve));
      const before = this.#queued;
      this.#queued = this.device.queue.onSubmittedWorkDone();
      this.#queued.catch(() => {}); // whoever waits for it hears of it
      await before;
    });
  }

  /** Resolves when the work that was queued is over, well or not. */
  async idle(): Promise<void> {
    await Promise.allSettled([this.#queued]);
  }

  /** Frees what the device holds; nothing can be computed any more. */
  async close(): Promise<void> {
    this.device.destroy();
    await this.device.lost;
  }

  /** Throws what went wrong without any call having been told. */
  throwFault(): void {
    if (this.#fault !== undefined) throw new Error(this.#fault);
  }
}
