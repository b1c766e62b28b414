/**
 * A program that gives up its `cpu` device in the middle of a block and ends at once.
 *
 * @module
 */
import { Context, Effect, Layer } from "effect";
import { cpuWith } from "../../plugins/cpu.ts";
import { Device } from "../../runtime/device.ts";
import { contiguous } from "../../runtime/span.ts";
import { bandOf, full } from "./masks.ts";

const shape = { batch: 1, heads: 8, kvHeads: 8, headDim: 64, tokens: 4096 };
const bytes = new Uint8Array(new SharedArrayBuffer(2 * 4 * shape.tokens * 8 * 64));
const span = contiguous(0, shape.tokens);
const tile = { row: 0, queries: span, column: 0, keys: span, full: true };

await Effect.gen(function* () {
  const device = Context.get(yield* Layer.build(cpuWith({ threads: 3 }).layer), Device);
  const q = bytes.subarray(bytes.length / 2);
  const accumulator = yield* device.begin({ ...shape, scale: 0.125, dtype: "f32", bytes: q });
  const block = { tokens: shape.tokens, dtype: "f32", bytes } as const;
  const absorb = accumulator.absorb(block, [tile], bandOf(full));
  // The whole block takes longer.
  yield* Effect.raceFirst(absorb, Effect.sleep("20 millis"));
  console.log("gave up");
}).pipe(Effect.scoped, Effect.runPromise);
