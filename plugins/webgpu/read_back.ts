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

/**
 * The content of such memory, once what was submitted before is over. It is gone with `unmap` or `destroy`.
 *
 * @param linger Is given the promise of WebGPU, which may settle later and concerns nobody then.
 */
export const contentOf = async (
  buffer: GPUBuffer,
  linger: (promise: Promise<unknown>) => void,
): Promise<ArrayBuffer> => {
  const mapped = buffer.mapAsync(GPUMapMode.READ);
  linger(mapped);
  mapped.catch(() => {}); // or whoever waits for it hears of it
  try {
    return buffer.getMappedRange();
  } catch {
    await mapped;
    return buffer.getMappedRange();
  }
};
