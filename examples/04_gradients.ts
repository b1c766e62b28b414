/**
 * Gradients over a ring: dq, dk and dv of a loss, and whether they are its slope.
 *
 * ```sh
 * deno run -A examples/04_gradients.ts
 * ```
 *
 * A training step asks attention for o, and comes back with dO, the gradient of its loss by o. With that cotangent,
 * `attend` gives the gradients by q, k and v as well, by a second pass around the ring.
 *
 * @module
 */
import { Effect } from "effect";
import { attend, causal, inProcess, reference } from "../mod.ts";

const [tokens, heads, kvHeads, headDim] = [60, 4, 2, 8];
const noise = (seed: number, heads: number) =>
  Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
const [q, k, v] = [noise(1, heads), noise(2, kvHeads), noise(3, kvHeads)];
/** The loss is Σ cotangent · o. */
const cotangent = noise(4, heads);

const over = (ring: number, keys = k) =>
  attend({
    tokens,
    heads,
    kvHeads,
    headDim,
    q,
    k: keys,
    v,
    cotangent,
    ring,
    attention: [causal()],
  }).pipe(Effect.provide(inProcess(reference)), Effect.runPromise);

const three = await over(3);
const dk = three.gradients!.dk;

// One step along some direction: the loss changes by the step times the gradient along it.
const direction = noise(5, kvHeads);
const lossAt = async (step: number) => {
  const { o } = await over(1, k.map((x, i) => x + step * direction[i]!));
  return o.reduce((sum, x, i) => sum + x * cotangent[i]!, 0);
};
const step = 2 ** -8;
const slope = (await lossAt(step) - await lossAt(-step)) / (2 * step);
const along = dk.reduce((sum, x, i) => sum + x * direction[i]!, 0);
console.log(`dk of a ring of three says ${along}, and the loss itself ${slope}`);
if (Math.abs(along - slope) > 1e-3 * Math.abs(slope)) throw new Error("it should be the slope");

for (const { rank, sentBytes, sentGradientBytes } of three.ranks) {
  console.log(
    `rank ${rank} sent ${sentBytes} bytes of K and V and ${sentGradientBytes} of gradients`,
  );
}
