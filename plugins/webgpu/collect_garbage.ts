/**
 * Letting go of a GPU while the process still runs. `GPUDevice.destroy` frees what a device holds; the driver's own
 * device goes with the last object that refers to it, which Deno leaves to the garbage collector, at the latest to the
 * end of the Worker. That end is not waited for by anybody: where the process ends meanwhile, NVIDIA's driver is taken
 * down while a thread is in it, and the process ends with a segmentation fault after all work was done
 * (https://github.com/gfx-rs/wgpu/issues/8365).
 *
 * @module
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Collects all garbage of this thread at once. */
export const collectGarbage = (): void => {
  setFlagsFromString("--expose-gc");
  runInNewContext("gc")();
};
