/**
 * The plugin contract: a name, a score and a layer. The list of plugins is an argument, never a global; a named
 * plugin never falls back to another, and `auto` takes the best score.
 *
 * @module
 */
import { Effect, type Layer } from "effect";
import { Device } from "./device.ts";
import { DeviceUnavailable } from "./errors.ts";

/** One way to compute. */
export interface DevicePlugin {
  readonly name: string;
  /** How well it would run here, 0 for "cannot"; cheap to ask, and never fails. */
  readonly score: Effect.Effect<number>;
  /** Opens the device; closes it with the scope. */
  readonly layer: Layer.Layer<Device, DeviceUnavailable>;
}

/** The plugin called `wanted`, or for `auto` the one with the best score. */
export const chooseDevice = Effect.fn("chooseDevice")(
  function* (plugins: ReadonlyArray<DevicePlugin>, wanted: string) {
    const known = plugins.map((plugin) => `"${plugin.name}"`).join(", ");
    if (wanted !== "auto") {
      const named = plugins.find((plugin) => plugin.name === wanted);
      if (named !== undefined) return named;
      return yield* new DeviceUnavailable({
        device: wanted,
        needed: `to be "auto" or one of ${known}`,
        found: "no plugin of that name",
      });
    }
    const scores = yield* Effect.forEach(plugins, (plugin) => plugin.score);
    const best = scores.indexOf(Math.max(...scores));
    if (best >= 0 && scores[best]! > 0) return plugins[best]!;
    return yield* new DeviceUnavailable({
      device: wanted,
      needed: `a plugin among ${known} that can run here`,
      found: "none",
    });
  },
);
