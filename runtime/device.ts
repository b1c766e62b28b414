/**
 * The device port: where tensors live and attention runs. A device works in a Worker of its own, so that sockets,
 * timers and fibers on this thread never wait for it.
 *
 * @module
 */
import { Context, type Effect, type Scope } from "effect";
import type { DeviceFailed } from "./errors.ts";
import type { Attended, DeviceInfo, KeyValues, Queries, Tile } from "./kernel.ts";
import type { Band } from "./mask.ts";

/** One rank's state on a device. */
export interface Accumulator {
  /**
   * Adds one block and gives the milliseconds for which the device was busy with it. The block's bytes are not
   * needed any more when this returns.
   */
  readonly absorb: (
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ) => Effect.Effect<number, DeviceFailed>;
  readonly finish: Effect.Effect<Attended, DeviceFailed>;
}

/** A device that several ranks may share. */
export class Device extends Context.Service<Device, {
  readonly info: DeviceInfo;
  /** Uploads the queries; the accumulator's memory is freed with the scope. */
  readonly begin: (queries: Queries) => Effect.Effect<Accumulator, DeviceFailed, Scope.Scope>;
}>()("annulus/runtime/Device") {}
