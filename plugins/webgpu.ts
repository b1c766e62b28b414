/**
 * The `webgpu` device: any GPU that WebGPU reaches, or a driver that imitates one on the CPU.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import { Device } from "../runtime/device.ts";
import { deviceInWorker } from "../runtime/device_worker.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { findAdapter, isSoftware } from "./webgpu/adapter.ts";
import type { WebgpuOptions } from "./webgpu/open.ts";

export type { WebgpuOptions };

/** The device with other options than its own. */
export const webgpuWith = (options: WebgpuOptions): DevicePlugin => ({
  name: "webgpu",
  // A software adapter is still better than plain loops, but any real GPU is better than that.
  score: Effect.promise(findAdapter).pipe(
    Effect.map((adapter) => adapter === undefined ? 0 : isSoftware(adapter.info) ? 10 : 100),
  ),
  layer: Layer.effect(
    Device,
    deviceInWorker({
      name: "webgpu",
      url: new URL("./webgpu_worker.ts", import.meta.url),
      options,
      closing: 2000,
    }),
  ),
});

/** WebGPU with the adapter's own limits. */
export const webgpu: DevicePlugin = webgpuWith({});
