/**
 * Attention that is not plain causal: variants compose, and a ring computes and moves what they leave.
 *
 * ```sh
 * deno run -A examples/06_attention.ts
 * ```
 *
 * A variant of your own is a file beside yours: see docs/plugins.md.
 *
 * @module
 */
import { Effect } from "effect";
import { attend, causal, documents, inProcess, reference, type Variant, window } from "../mod.ts";

const [tokens, heads, headDim] = [600, 2, 8];
const noise = (seed: number) =>
  Float32Array.from({ length: tokens * heads * headDim }, (_, i) => Math.sin(seed + i * i));
const input = { tokens, heads, headDim, q: noise(1), k: noise(2), v: noise(3) };

/** Three documents in one sequence, each token sees the last forty of its own. */
const attention: ReadonlyArray<Variant> = [
  causal(),
  window({ size: 40 }),
  documents({ cu_seqlens: [0, 250, 330, tokens] }),
];

const over = (ring: number, attention: ReadonlyArray<Variant>) =>
  attend({ ...input, ring, attention }).pipe(
    Effect.provide(inProcess(reference)),
    Effect.runPromise,
  );

const [packed, plain] = [await over(4, attention), await over(4, [causal()])];
const sent = (run: typeof packed) => run.ranks.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
for (const [name, run] of [["packed", packed], ["causal", plain]] as const) {
  console.log(`${name}: ${run.plan.pairs} pairs, ${sent(run)} bytes moved, ${run.plan.layout}`);
}
if (!(packed.plan.pairs < plain.plan.pairs / 5 && sent(packed) < sent(plain) / 5)) {
  throw new Error("a window over documents should be less work, and move less");
}

const one = await over(1, attention);
const apart = Math.max(...one.o.map((x, i) => Math.abs(x - packed.o[i]!)));
console.log(`a ring of four differs from one device by ${apart}`);
if (apart > 1e-6) throw new Error("it should not");
