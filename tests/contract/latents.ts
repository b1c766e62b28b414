/**
 * The contract of latent attention on a ring: what travels is the latent, and the answer is that of the keys and values
 * that it stands for, over every ring size and layout, under masks and scores.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { denseAttention, expandedLatents, type Rules } from "../../kernels/oracle.ts";
import { causal, documents, softcap } from "../../plugins/attention.ts";
import { attend } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { layouts } from "../../runtime/layout.ts";
import type { Variant } from "../../runtime/variant.ts";
import { assertClose, DeviceBound } from "../support/cut.ts";
import { normals } from "../support/random.ts";
import { boundsOf } from "../support/shipped.ts";
import { type RingCase, type RingUnderTest, testRing } from "./ring.ts";

interface Sizes {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly rank: number;
  readonly rope: number;
  readonly value: number;
}

/** Sizes that are multiples of nothing. */
const odd: Sizes = {
  ...{ batch: 2, tokens: 103, heads: 6, headDim: 24 },
  ...{ rank: 20, rope: 8, value: 12 },
};

/** Those of DeepSeek-V3, but for the number of heads. */
const deepSeek: Sizes = {
  ...{ batch: 1, tokens: 131, heads: 3, headDim: 192 },
  ...{ rank: 512, rope: 64, value: 128 },
};

const inputsOf = ({ batch, tokens, heads, headDim, rank, rope, value }: Sizes) => ({
  q: normals(1, batch * tokens * heads * headDim),
  values: normals(2, batch * tokens * (rank + rope)),
  // So that keys and values are about as large as those of other tests.
  up: normals(3, heads * (headDim - rope + value) * rank).map((x) => x / Math.sqrt(rank)),
});

/** What it must be: keys and values written out, and attention over these. */
const expectedOf = (sizes: Sizes, { q, values, up }: ReturnType<typeof inputsOf>, rules: Rules) => {
  const { batch, tokens, heads, headDim, rank, rope, value } = sizes;
  const { k, v } = expandedLatents(sizes, values, up);
  assert.equal(k.length, batch * tokens * heads * headDim);
  assert.equal(values.length, batch * tokens * (rank + rope));
  const judged = { ...sizes, kvHeads: heads, scale: 1 / Math.sqrt(headDim), rules };
  const { o, lse } = denseAttention(judged, q, k, v);
  return { o: o.filter((_, i) => i % headDim < value), lse };
};

const before = (q: number, k: number) => k <= q;

const attentions = (tokens: number): ReadonlyArray<{
  readonly attention: ReadonlyArray<Variant>;
  readonly rules: Rules;
}> => {
  const bounds = boundsOf(tokens);
  const documentOf = (token: number) => bounds.findLastIndex((bound) => bound <= token);
  return [
    { attention: [causal()], rules: { sees: (_b, _h, q, k) => before(q, k) } },
    {
      attention: [causal(), documents({ cu_seqlens: bounds }), softcap({ cap: 2 })],
      rules: {
        sees: (_b, _h, q, k) => before(q, k) && documentOf(q) === documentOf(k),
        score: (s) => 2 * Math.tanh(s / 2),
      },
    },
  ];
};

const run = Effect.fnUntraced(function* (
  sizes: Sizes,
  rings: ReadonlyArray<ReadonlyArray<number>>,
  forms: ReadonlyArray<"expand" | "absorb">,
) {
  const inputs = inputsOf(sizes);
  const { rank, rope, value } = sizes;
  const latents = { rank, rope, value, values: inputs.values, up: inputs.up };
  const found = new Set<string>();
  for (const { attention, rules } of attentions(sizes.tokens)) {
    const expected = expectedOf(sizes, inputs, rules);
    for (const weights of rings) {
      for (const layout of layouts) {
        const ring = { ring: weights.length, weights, layout };
        const given = { ...sizes, q: inputs.q, latents, attention, ...ring };
        const result = yield* attend(given).pipe(Effect.provide(Crew.local()));
        assertClose(result, expected, yield* DeviceBound);
        const { ranks, plan } = result;
        plan.ranks.forEach(({ rank: at, sends, sentBytes, latentForm }) => {
          const tokens = sends.reduce((sum, { block }) => sum + block.span.count, 0);
          assert.equal(sentBytes, sizes.batch * tokens * (rank + rope) * 4);
          assert.equal(ranks[at]!.sentBytes, sentBytes);
          found.add(latentForm!);
        });
      }
    }
  }
  assert.deepEqual([...found].sort(), [...forms].sort());
});

/** Every promise of the contract. */
export const latentCases: ReadonlyArray<RingCase> = [
  {
    name: "latents of sizes that are multiples of nothing, expanded and absorbed",
    run: run(odd, [1, 2, 3, 5, 8].map((ring) => Array(ring).fill(1)), ["absorb", "expand"]),
  },
  {
    // A rank with few queries and blocks of many keys.
    name: "latents of DeepSeek's sizes",
    run: run(deepSeek, [[1], [6, 1]], ["absorb", "expand"]),
  },
];

/** Registers the contract, or some of it, as one test of a device and its links. */
export const testLatents = (name: string, ring: RingUnderTest, cases = latentCases): void =>
  testRing(name, { ...ring, contract: { name: "the contract of latents", cases } });
