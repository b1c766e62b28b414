/**
 * Multi-head latent attention: of each token one latent travels around the ring, and every rank makes the keys and values
 * of all heads of it, or absorbs their making into its queries.
 *
 * ```sh
 * deno run -A examples/07_latents.ts
 * ```
 *
 * @module
 */
import { Effect } from "effect";
import { attend, causal, inProcess, reference } from "../mod.ts";

// Queries and keys have 16 components without and 8 with positions, values 16; 32 numbers are in a latent.
const [tokens, heads, headDim, rank, rope, value] = [240, 8, 24, 32, 8, 16];
const noise = (seed: number, count: number) =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(seed + i * i));
const q = noise(1, tokens * heads * headDim);
const values = noise(2, tokens * (rank + rope));
const rows = headDim - rope + value;
const up = noise(3, heads * rows * rank).map((x) => x / Math.sqrt(rank));

/** The keys and values that the latents stand for, written out; a value's last components are 0. */
const [k, v] = [new Float32Array(q.length), new Float32Array(q.length)];
for (let token = 0; token < tokens; token++) {
  const latent = values.subarray(token * (rank + rope), (token + 1) * (rank + rope));
  for (let h = 0; h < heads; h++) {
    const at = (token * heads + h) * headDim;
    for (let row = 0; row < rows; row++) {
      const made = up.subarray((h * rows + row) * rank, (h * rows + row + 1) * rank)
        .reduce((sum, x, i) => sum + x * latent[i]!, 0);
      if (row < headDim - rope) k[at + row] = made;
      else v[at + row - (headDim - rope)] = made;
    }
    k.set(latent.subarray(rank), at + headDim - rope);
  }
}

const common = { tokens, heads, headDim, q, attention: [causal()], ring: 4 };
const run = (options: Parameters<typeof attend>[0]) =>
  attend(options).pipe(Effect.provide(inProcess(reference)), Effect.runPromise);
const latents = await run({ ...common, latents: { rank, rope, value, values, up } });
const expanded = await run({ ...common, k, v });

const sent = ({ ranks }: typeof latents) =>
  ranks.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
console.log(`latents: ${sent(latents)} bytes moved; keys and values: ${sent(expanded)}`);
// Of each head of the other result, the components that a value has.
const wanted = expanded.o.filter((_, i) => i % headDim < value);
const apart = Math.max(...latents.o.map((x, i) => Math.abs(x - wanted[i]!)));
console.log(`${latents.o.length} outputs differ by ${apart}`);
if (apart > 1e-5 || sent(latents) * 9 > sent(expanded)) throw new Error("it should not");
