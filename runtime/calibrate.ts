/**
 * How fast this node is: attention on its device, and bytes through its links. Measured when a node starts, for
 * `annulus nodes` and for weights.
 *
 * @module
 */
import { Clock, Effect } from "effect";
import { Device } from "./device.ts";
import type { DeviceFailed, LinkError } from "./errors.ts";
import { newRun } from "./job.ts";
import { Links } from "./link.ts";
import { bandOf } from "./mask.ts";
import { contiguous } from "./span.ts";

const heads = 4, headDim = 64;
/** Long enough that a device's fixed costs do not count. */
const enoughMilliseconds = 100;
const mostTokens = 4096;

/** One pass of full attention over zeros; values do not change the work. */
const attendZeros = (tokens: number): Effect.Effect<number, DeviceFailed, Device> =>
  Effect.scoped(Effect.gen(function* () {
    const device = yield* Device;
    const bytes = new Uint8Array(new SharedArrayBuffer(2 * tokens * heads * headDim * 4));
    const queries = bytes.subarray(bytes.byteLength / 2);
    const accumulator = yield* device.begin({
      batch: 1,
      heads,
      kvHeads: heads,
      headDim,
      scale: 1,
      tokens,
      dtype: "f32",
      bytes: queries,
    });
    const span = contiguous(0, tokens);
    const tile = { row: 0, queries: span, column: 0, keys: span, full: true };
    return yield* accumulator.absorb(
      { tokens, dtype: "f32", bytes },
      [tile],
      bandOf({ kind: "full" }),
    );
  }));

/** GFLOP/s of full attention at head dim 64, after a warm-up that compiles what needs compiling. */
export const measureAttention: Effect.Effect<number, DeviceFailed, Device> = Effect.gen(
  function* () {
    let tokens = 256;
    yield* attendZeros(tokens);
    let busy = yield* attendZeros(tokens);
    while (busy < enoughMilliseconds && tokens < mostTokens) {
      tokens *= 2;
      busy = yield* attendZeros(tokens);
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
