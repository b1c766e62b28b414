/**
 * Buffers that were used and are used again: the memory of a new one costs a page fault for every 4 KiB where a program
 * imitates a GPU. Only those of the last sizes are kept.
 *
 * @module
 */

/** The buffers of one device that nobody uses at the moment. */
export class SpareBuffers {
  readonly #device: GPUDevice;
  #spare: Array<GPUBuffer> = [];

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** A buffer of just that size and usage, with anything in it. */
  take(label: string, size: number, usage: number): GPUBuffer {
    const at = this.#spare.findIndex((buffer) =>
      buffer.label === label && buffer.size === size && buffer.usage === usage
    );
    if (at >= 0) return this.#spare.splice(at, 1)[0]!;
    // Another shape than before: what fitted that one need not be kept for it.
    for (const buffer of this.#spare.splice(0)) buffer.destroy();
    return this.#device.createBuffer({ label, size, usage });
  }

  /** Takes a buffer back; what was queued before still finds its content. */
  give(buffer: GPUBuffer): void {
    this.#spare.push(buffer);
  }
}
