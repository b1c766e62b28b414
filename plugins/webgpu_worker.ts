/**
 * The Worker of the `webgpu` device.
 *
 * @module
 */
import { serveDevice } from "../runtime/device_worker_guest.ts";
import { collectGarbage } from "./webgpu/collect_garbage.ts";
import { openWebgpu, type WebgpuOptions } from "./webgpu/open.ts";

serveDevice((options) => openWebgpu(options as WebgpuOptions | undefined), collectGarbage);
