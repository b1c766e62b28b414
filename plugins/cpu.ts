/**
 * The `cpu` device: this machine's processor, with matrix products by OpenBLAS. It is no GPU and never passes as one.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import { Device } from "../runtime/device.ts";
import { deviceInWorker } from "../runtime/device_worker.ts";
import { findLibrary, isFile } from "../runtime/library.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";
import { libraryName } from "./cpu/blas.ts";
import { Lifeline } from "./cpu/lifeline.ts";
import type { CpuOptions, WorkerOptions } from "./cpu/open.ts";

/** The device with other options than its own. */
export const cpuWith = (options: CpuOptions): DevicePlugin => ({
  name: "cpu",
  // Better than a program that imitates a GPU on the same processor; any real GPU is better than that.
  score: Effect.sync(() => {
    const path = options.library ?? findLibrary(libraryName);
    if (path === undefined || !isFile(path)) return 0;
    return Deno.permissions.querySync({ name: "ffi", path }).state === "granted" ? 50 : 0;
  }),
  layer: Layer.effect(
    Device,
    Effect.gen(function* () {
      const lifeline = new Lifeline();
      const device = yield* deviceInWorker({
        name: "cpu",
        url: new URL("./cpu_worker.ts", import.meta.url),
        options: { ...options, lifeline: lifeline.words } satisfies WorkerOptions,
      });
      // Before the Worker is terminated.
      yield* Effect.addFinalizer(() => Effect.promise(() => lifeline.end()));
      return device;
    }),
  ),
});

/** All processors of this machine. */
export const cpu: DevicePlugin = cpuWith({});
