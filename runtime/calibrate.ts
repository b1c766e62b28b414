/**
 * How fast this node is: attention on its device, and bytes through its links. Measured when a node starts, for
 * `annulus nodes` and for weights.
 *
 * @module
 */
import { Clock, Effect } from "effect";
import { Device } from "./device.ts";
import { type DType, elementBytes } from "./dtype.ts";
import type { DeviceFailed, LinkError } from "./errors.ts";
import { newRun } from "./job.ts";
import { Links } from "./link.ts";
import { unbounded } from "./mask.ts";
import { contiguous } from "./span.ts";

const heads = 4, headDim = 64;
/** Long enough that a device's fixed costs do not count. */
const enoughMilliseconds = 100;
const mostTokens = 4096;

/** What to attend over. */
export interface Zeros {
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: DType;
  /** Each query sees itself and what comes before it, or else every key. */
  readonly causal: boolean;
}

/** One pass over zeros, for values do not change the work; gives the milliseconds for which the device was busy. */
export const attendZeros = (
  { tokens, heads, headDim, dtype, causal }: Zeros,
): Effect.Effect<number, DeviceFailed, Device> =>
  Effect.scoped(Effect.gen(function* () {
    const device = yield* Device;
    const size = tokens * heads * headDim * elementBytes(dtype);
    const bytes = new Uint8Array(new SharedArrayBuffer(2 * size));
    const shape = { batch: 1, heads, kvHeads: heads, headDim, scale: 1, tokens, dtype };
    const accumulator = yield* device.begin({ ...shape, bytes: bytes.subarray(size) });
    const span = contiguous(0, tokens);
    return yield* accumulator.absorb(
      { tokens, dtype, bytes },
      [{ row: 0, queries: span, column: 0, keys: span, full: !causal }],
      { back: unbounded, ahead: causal ? 0 : unbounded },
    );
  }));

/** GFLOP/s of full attention at head dim 64, after a warm-up that compiles what needs compiling. */
export const measureAttention: Effect.Effect<number, DeviceFailed, Device> = Effect.gen(
  function* () {
    const attend = (tokens: number) =>
      attendZeros({ tokens, heads, headDim, dtype: "f32", causal: false });
    let tokens = 256;
    yield* attend(tokens);
    let busy = yield* attend(tokens);
    while (busy < enoughMilliseconds && tokens < mostTokens) {
      tokens *= 2;
      busy = yield* attend(tokens);
    }
    return 4 * headDim * heads * tokens * tokens / busy / 1e6;
  },
);

/** MB/s of a link from this process to itself. */
export const measureLink: Effect.Effect<number, LinkError, Links> = Effect.scoped(
  Effect.gen(function* () {
    const links = yield* Links;
    const run = yield* newRun;
    const [a, b] = yield* Effect.all(
      [links.open({ run, self: 0, peer: 1 }), links.open({ run, self: 1, peer: 0 })],
      { concurrency: "unbounded" },
    );
    const frame = new Uint8Array(links.maxFrame);
    const frames = Array.from({ length: 32 }, () => frame);
    const began = yield* Clock.currentTimeNanos;
    yield* Effect.all([
      Effect.forEach(frames, a.send, { discard: true }),
      Effect.forEach(frames, () => b.receive, { discard: true }),
    ], { concurrency: "unbounded" });
    const seconds = Number((yield* Clock.currentTimeNanos) - began) / 1e9;
    return frames.length * frame.byteLength / seconds / 1e6;
  }),
);
