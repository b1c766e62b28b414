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
import type { KeysIn } from "./program.ts";

/** What a caller may ask of the device. */
export interface WebgpuOptions {
  /** Bytes that one buffer may have, where that is less than the adapter's own limit. */
  readonly largestBuffer?: number;
  /** What shall hold K and V, where that is not what suits the adapter: textures a software one, buffers a GPU. */
  readonly keysIn?: KeysIn;
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
  const { maxBufferSize, maxStorageBufferBindingSize, maxTextureDimension2D } = adapter.limits;
  const device = await adapter.requestDevice({
    requiredLimits: { maxBufferSize, maxStorageBufferBindingSize, maxTextureDimension2D },
  });
  const largestBuffer = Math.min(
    maxBufferSize,
    maxStorageBufferBindingSize,
    options.largestBuffer ?? Infinity,
  );
  const software = isSoftware(adapter.info);
  const attention = new WebgpuAttention(new Gpu(device), {
    keysIn: options.keysIn ?? (software ? "texture" : "buffer"),
    largestBuffer,
    tallestTexture: maxTextureDimension2D,
  });
  // The smallest program, so that a driver that computes wrongly is known at once.
  await attention.prepare("f32", 4);
  return {
    info: {
      name: "webgpu",
      backend: describe(adapter.info),
      software,
      features: [...device.features],
      gradients: false,
      memory: Deno.systemMemoryInfo().total,
      largestTensor: largestBuffer,
    },
    begin: (queries) => attention.begin(queries),
  };
};
