/**
 * The `reference` device: plain loops in a Worker. It runs everywhere and is slow, so that `auto` takes it last.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import { Device } from "../runtime/device.ts";
import { deviceInWorker } from "../runtime/device_worker.ts";
import type { DevicePlugin } from "../runtime/plugin.ts";

/** Float64 arithmetic on one core. */
export const reference: DevicePlugin = {
  name: "reference",
  score: Effect.succeed(1),
  layer: Layer.effect(
    Device,
    deviceInWorker({
      name: "reference",
      url: new URL("./reference_worker.ts", import.meta.url),
    }),
  ),
};
