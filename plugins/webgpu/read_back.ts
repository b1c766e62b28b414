/**
 * Memory in which results come back from the device. Deno 2.9 waits for the device in the call of `mapAsync` itself, and
 * then lets its promise wait for another 10 ms: hence the content is looked at before. WebGPU elsewhere refuses that with
 * an error, after which the promise is waited for.
 *
 * @module
 */
/** What every such buffer is. */
export const ofResults = {
  label: "result",
  usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
} as const;

/** Memory into which a result can be copied. */
export const resultBuffer = (device: GPUDevice, size: number): GPUBuffer => {
  // Mapped once: Deno ends the process where somebody looks at memory that never was.
  const buffer = device.createBuffer({ ...ofResults, size, mappedAtCreation: true });
  buffer.unmap();
  return buffer;
};

/** The content of such memory, once what was submitted before is over. It is gone with `unmap` or `destroy`. */
export interface Content {
  readonly bytes: ArrayBuffer;
  /** A promise of WebGPU that may resolve later; it concerns nobody any more. */
  readonly lingers: Promise<unknown>;
}

/** Waits for the content of memory. */
export const contentOf = async (buffer: GPUBuffer): Promise<Content> => {
  const lingers = buffer.mapAsync(GPUMapMode.READ);
  lingers.catch(() => {}); // or whoever waits for it hears of it
  try {
    return { bytes: buffer.getMappedRange(), lingers };
  } catch {
    await lingers;
    return { bytes: buffer.getMappedRange(), lingers };
  }
};
