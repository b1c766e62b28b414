/**
 * Devices that hang: what they are asked for never ends.
 *
 * @module
 */
import { Effect } from "effect";
import type { Device } from "../../runtime/device.ts";

/** In what a device can hang. */
export const hangs = [
  "beginning",
  "first block",
  "end",
  "beginning of gradients",
  "first block of gradients",
  "end of gradients",
] as const;
/** One of them. */
export type Hang = typeof hangs[number];

/** A device on which the nth shard that begins hangs in something. */
export const hangingIn = (
  what: Hang,
  nth: number,
  device: Device["Service"],
): Device["Service"] => {
  const hanging = <Q extends ReadonlyArray<unknown>, A, E, R>(
    begin: (...queries: Q) => Effect.Effect<A, E, R>,
    pass: "" | " of gradients",
  ) => {
    let begun = 0;
    return (...queries: Q): Effect.Effect<A, E, R> => {
      if (++begun !== nth || what.endsWith(" of gradients") !== (pass !== "")) {
        return begin(...queries);
      }
      if (what.startsWith("beginning")) return Effect.never;
      const never = what.startsWith("end")
        ? { finish: Effect.never }
        : { absorb: () => Effect.never };
      return Effect.map(begin(...queries), (accumulator) => ({ ...accumulator, ...never }));
    };
  };
  return {
    ...device,
    begin: hanging(device.begin, ""),
    ...(device.beginBackward && { beginBackward: hanging(device.beginBackward, " of gradients") }),
  };
};
