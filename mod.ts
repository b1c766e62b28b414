/**
 * annulus: exact attention over sequences that no single device can hold.
 *
 * The sequence is split over the ranks of a ring. Key/value blocks travel around it while every rank computes on the
 * blocks that it has, and the answer is the same as on one device.
 *
 * @example Four ranks agree with one
 * ```ts
 * import { Effect } from "effect";
 * import { attend, memoryLinks, reference } from "./mod.ts";
 *
 * const [tokens, heads, headDim] = [50, 2, 8];
 * const noise = (seed: number) =>
 *   Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
 * const input = { tokens, heads, headDim, q: noise(1), k: noise(2), v: noise(3) };
 *
 * const over = (ring: number) =>
 *   attend({ ...input, ring, mask: { kind: "causal" } }).pipe(
 *     Effect.provide([memoryLinks(), reference.layer]),
 *     Effect.runPromise,
 *   );
 * const [one, four] = await Promise.all([over(1), over(4)]);
 * const apart = one.o.map((x, i) => Math.abs(x - four.o[i]!));
 * if (Math.max(...apart) > 1e-6) throw new Error("a ring of four disagrees with one device");
 * ```
 *
 * @module
 */
export { attend, type AttendOptions, type AttendResult } from "./runtime/attend.ts";
export { memoryLinks } from "./plugins/memory.ts";
export { reference } from "./plugins/reference.ts";
