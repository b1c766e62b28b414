/**
 * The device port: where tensors live and attention runs. A device works in a Worker of its own, so that sockets,
 * timers and fibers on this thread never wait for it.
 *
 * @module
 */
import { Context, type Effect, type Scope } from "effect";
import type { DeviceFailed } from "./errors.ts";
import type { Attended, DeviceInfo, KeyValues, Outcome, Queries, Tile } from "./kernel.ts";
import type { DType } from "./dtype.ts";
import type { Band } from "./mask.ts";
import type { Program, WeightSpec } from "./program.ts";

/** One rank's state on a device. */
export interface Accumulator {
  /**
   * Adds one block and gives the milliseconds for which the device was busy with it. The block's bytes are not
   * needed any more when this returns. A second call may start before the first returns: its work is queued.
   */
  readonly absorb: (
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ) => Effect.Effect<number, DeviceFailed>;
  readonly finish: Effect.Effect<Attended, DeviceFailed>;
}

/** What one block adds to the gradients of its own keys and values. */
export interface BlockGradients {
  /** dk then dv, each [batch, tokens, kvHeads, headDim]. */
  readonly gradients: Float32Array;
  /** Milliseconds for which the device was busy. */
  readonly busy: number;
}

/** One rank's backward pass on a device. */
export interface BackwardAccumulator {
  /** Adds one block to dq, and gives what its keys and values get of this rank's queries. */
  readonly absorb: (
    block: KeyValues,
    tiles: ReadonlyArray<Tile>,
    band: Band,
  ) => Effect.Effect<BlockGradients, DeviceFailed>;
  /** dq, [batch, tokens, heads, headDim]. */
  readonly finish: Effect.Effect<Float32Array, DeviceFailed>;
}

/** A model's weights on a device, and programs over them. */
export interface Programs {
  /** Rows `first` … of a weight, in a format of their own. */
  readonly fill: (
    weight: string,
    first: number,
    dtype: DType,
    bytes: Uint8Array,
  ) => Effect.Effect<void, DeviceFailed>;
  /** The values that the program gives. */
  readonly run: (program: Program) => Effect.Effect<ReadonlyArray<Float32Array>, DeviceFailed>;
}

/** A device that several ranks may share. */
export class Device extends Context.Service<Device, {
  readonly info: DeviceInfo;
  /** Uploads the queries; the accumulator's memory is freed with the scope. */
  readonly begin: (queries: Queries) => Effect.Effect<Accumulator, DeviceFailed, Scope.Scope>;
  /** The same for gradients; absent where `info.gradients` is false. */
  readonly beginBackward?: (
    queries: Queries,
    outcome: Outcome,
  ) => Effect.Effect<BackwardAccumulator, DeviceFailed, Scope.Scope>;
  /** Memory for these weights, which are 0 until they are filled; it is freed with the scope. */
  readonly programs?: (
    weights: ReadonlyArray<WeightSpec>,
  ) => Effect.Effect<Programs, DeviceFailed, Scope.Scope>;
}>()("annulus/runtime/Device") {}
