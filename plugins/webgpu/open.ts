/**
 * Opens the attention kernel of the best WebGPU adapter.
 *
 * @module
 */
import { Unavailable } from "../../runtime/device_worker_guest.ts";
import type { AttentionKernel } from "../../runtime/kernel.ts";
import { describe, findAdapter, isSoftware } from "./adapter.ts";
import { Gpu } from "./gpu.ts";
import { WebgpuAttention } from "./kernel.ts";
import { blockingFor } from "./program.ts";

/** What a caller may ask of the device. */
export interface WebgpuOptions {
  /** Bytes that one buffer may have, where that is less than the adapter's own limit. */
  readonly largestBuffer?: number;
}

/**
 * The kernel, once it has computed a small problem right. It asks for the adapter's own limits and for no optional
 * feature, so that every adapter runs the same program.
 */
export const openWebgpu = async (options: WebgpuOptions = {}): Promise<AttentionKernel> => {
  const adapter = await findAdapter();
  if (adapter === undefined) {
    throw new Unavailable({
      needed: "a GPU or software adapter, with the Vulkan loader and a driver on Linux " +
        "(`deno task setup` installs them)",
      found: "no adapter",
    });
  }
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const device = await adapter.requestDevice({
    requiredLimits: { maxBufferSize, maxStorageBufferBindingSize },
  });
  const largestBuffer = Math.min(
    maxBufferSize,
    maxStorageBufferBindingSize,
    options.largestBuffer ?? Infinity,
  );
  const software = isSoftware(adapter.info);
  const limits = { blocking: blockingFor(software), largestBuffer };
  const attention = new WebgpuAttention(new Gpu(device), limits);
  await attention.prepare("f32");
  return {
    info: {
      name: "webgpu",
      backend: describe(adapter.info),
      software,
      features: [...device.features],
      memory: Deno.systemMemoryInfo().total,
      largestTensor: largestBuffer,
    },
    begin: (queries) => attention.begin(queries),
  };
};
