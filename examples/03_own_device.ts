/**
 * A device of your own: an attention kernel in plain TypeScript, without a Worker and without any hurry.
 *
 * ```sh
 * deno run -A examples/03_own_device.ts
 * ```
 *
 * A ring asks three things of a device: begin with some query rows, absorb blocks of keys and values, and finish. A
 * real one would compute elsewhere: see `plugins/webgpu.ts`, and `tests/contract/device.ts` for the suite to pass.
 *
 * @module
 */
import { Effect, Layer } from "effect";
import {
  allows,
  asLse,
  attend,
  type AttentionKernel,
  decode,
  Device,
  type DevicePlugin,
  inProcess,
  lseOf,
  positionAt,
  reference,
  window,
} from "../mod.ts";

/** Softmax as it is written in textbooks: every row keeps its scores and values until the end. */
const kernel: AttentionKernel = {
  info: {
    name: "textbook",
    backend: "TypeScript",
    software: true,
    features: [],
    gradients: false,
    memory: 2 ** 30,
    largestTensor: 2 ** 30,
  },
  begin: ({ batch, tokens, heads, kvHeads, headDim, scale, dtype, bytes }) => {
    const q = decode(dtype, bytes);
    /** For each query row of each head, what it has seen: scores, and where their values are. */
    const seen = Array.from(
      { length: batch * tokens * heads },
      (): Array<{ score: number; value: Float32Array }> => [],
    );
    return {
      absorb: (block, tiles, band) => {
        const kv = decode(block.dtype, block.bytes);
        const [k, v] = [kv.subarray(0, kv.length / 2), kv.subarray(kv.length / 2)];
        for (const { row, queries, column, keys } of tiles) {
          for (let b = 0; b < batch; b++) {
            for (let i = 0; i < queries.count; i++) {
              for (let j = 0; j < keys.count; j++) {
                if (!allows(band, positionAt(queries, i), positionAt(keys, j))) continue;
                for (let h = 0; h < heads; h++) {
                  const from = (b * tokens + row + i) * heads + h;
                  const to = (b * block.tokens + column + j) * kvHeads +
                    Math.floor(h * kvHeads / heads);
                  let score = 0;
                  for (let c = 0; c < headDim; c++) {
                    score += q[from * headDim + c]! * k[to * headDim + c]!;
                  }
                  const value = v.subarray(to * headDim, (to + 1) * headDim);
                  seen[from]!.push({ score: score * scale, value });
                }
              }
            }
          }
        }
      },
      finish: () => {
        const o = new Float32Array(q.length);
        const lse = asLse(new Float32Array(seen.length));
        seen.forEach((pairs, row) => {
          const m = Math.max(...pairs.map(({ score }) => score));
          const l = pairs.reduce((sum, { score }) => sum + Math.exp(score - m), 0);
          for (const { score, value } of pairs) {
            value.forEach((x, c) => o[row * headDim + c]! += Math.exp(score - m) / l * x);
          }
          const [h, t, b] = [
            row % heads,
            Math.floor(row / heads) % tokens,
            Math.floor(row / heads / tokens),
          ];
          lse[(b * heads + h) * tokens + t] = lseOf(m, l);
        });
        return { o, lse };
      },
      close: () => {},
    };
  },
};

/** The kernel as a device that runs where it is called. */
const textbook: DevicePlugin = {
  name: "textbook",
  score: Effect.succeed(1),
  layer: Layer.succeed(Device, {
    info: kernel.info,
    begin: (queries) =>
      Effect.map(Effect.promise(async () => await kernel.begin(queries)), (accumulation) => ({
        absorb: (block, tiles, band) =>
          Effect.as(Effect.promise(async () => await accumulation.absorb(block, tiles, band)), 0),
        finish: Effect.promise(async () => await accumulation.finish()),
      })),
  }),
};

const [tokens, heads, headDim] = [90, 2, 8];
const noise = (seed: number) =>
  Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
const on = (device: DevicePlugin) =>
  attend({
    tokens,
    heads,
    headDim,
    q: noise(1),
    k: noise(2),
    v: noise(3),
    ring: 3,
    attention: [window({ size: 20 })],
  }).pipe(Effect.provide(inProcess(device)), Effect.runPromise);

const [ours, theirs] = [await on(textbook), await on(reference)];
const apart = Math.max(...ours.o.map((x, i) => Math.abs(x - theirs.o[i]!)));
console.log(`the textbook differs from the reference device by ${apart}`);
if (apart > 1e-6) throw new Error("it should not differ");
