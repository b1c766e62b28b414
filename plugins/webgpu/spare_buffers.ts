/**
 * Buffers that were used and are used again: the memory of a new one costs a page fault for every 4 KiB where a program
 * imitates a GPU. Only those of the last sizes are kept.
 *
 * @module
 */

import { ofResults, resultBuffer } from "./read_back.ts";

/** Bytes of memory of a result that is kept. */
const largestKept = 2 ** 26;

/** The buffers of one device that nobody uses at the moment. */
export class SpareBuffers {
  readonly #device: GPUDevice;
  #spare: Array<GPUBuffer> = [];

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** A buffer of just that size and usage, with anything in it. */
  take(label: string, size: number, usage: number): GPUBuffer {
    return this.#find(label, size, usage) ?? this.#device.createBuffer({ label, size, usage });
  }

  /** Memory into which a result can be copied. */
  takeResult(size: number): GPUBuffer {
    const { label, usage } = ofResults;
    return this.#find(label, size, usage) ?? resultBuffer(this.#device, size);
  }

  #find(label: string, size: number, usage: number): GPUBuffer | undefined {
    const at = this.#spare.findIndex((buffer) =>
      buffer.label === label && buffer.size === size && buffer.usage === usage
    );
    if (at >= 0) return this.#spare.splice(at, 1)[0]!;
    // Another shape than before: what fitted that one need not be kept for it.
    this.clear();
    return undefined;
  }

  /** Takes a buffer back; what was queued before still finds its content. */
  give(buffer: GPUBuffer): void {
    this.#spare.push(buffer);
  }

  /** The same for memory whose content was copied, where it is not so much that it should not stay. */
  giveResult(buffer: GPUBuffer): void {
    buffer.unmap();
    if (buffer.size <= largestKept) this.give(buffer);
    else buffer.destroy();
  }

  /** Frees what nobody uses. */
  clear(): void {
    for (const buffer of this.#spare.splice(0)) buffer.destroy();
  }
}
