/**
 * A ring in one process: the same attention over one, two and four ranks.
 *
 * ```sh
 * deno run -A examples/01_one_process.ts
 * ```
 *
 * Every rank is three fibers, and all of them share one device: here the plain float64 loops, which run everywhere.
 * Put `webgpu` in the place of `reference` to use a GPU.
 *
 * @module
 */
import { Effect } from "effect";
import { attend, causal, inProcess, reference } from "../mod.ts";

const [tokens, heads, kvHeads, headDim] = [300, 4, 2, 16];
const noise = (seed: number, heads: number) =>
  Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
const input = {
  tokens,
  heads,
  kvHeads, // two query heads share each K/V head
  headDim,
  q: noise(1, heads),
  k: noise(2, kvHeads),
  v: noise(3, kvHeads),
  attention: [causal()],
} as const;

const program = Effect.gen(function* () {
  const alone = yield* attend({ ...input, ring: 1 });
  for (const ring of [2, 4]) {
    const { o, plan, ranks } = yield* attend({ ...input, ring });
    const apart = Math.max(...o.map((x, i) => Math.abs(x - alone.o[i]!)));
    console.log(`ring of ${ring}, ${plan.layout}: differs from one device by ${apart}`);
    for (const { rank, pairs, tokens } of plan.ranks) {
      const { sentBytes, kvPeakBytes } = ranks[rank]!;
      console.log(
        `  rank ${rank}: ${tokens} tokens, ${pairs} pairs, sent ${sentBytes} bytes of K and V, held ${kvPeakBytes}`,
      );
    }
    if (apart > 1e-6) throw new Error("it should not differ");
  }
});

await program.pipe(Effect.provide(inProcess(reference)), Effect.runPromise);
