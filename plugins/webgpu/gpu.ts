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
    this.#throwFault();
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
      this.#throwFault();
      throw cause;
    }
    this.#throwFault();
    return value;
  }

  #throwFault(): void {
    if (this.#fault !== undefined) throw new Error(this.#fault);
  }
}
