/**
 * The contract of attention variants on a ring: each shipped one, and some that compose, gives what its rule says, over
 * every ring size and layout, with gradients.
 *
 * @module
 */
import { Effect } from "effect";
import assert from "node:assert/strict";
import { denseAttention, denseGradients } from "../../kernels/oracle.ts";
import { attend } from "../../runtime/attend.ts";
import { Crew } from "../../runtime/crew.ts";
import { type Layout, layouts } from "../../runtime/layout.ts";
import { blocks } from "../../plugins/attention.ts";
import type { PairMask, Variant } from "../../runtime/variant.ts";
import { relativeL2 } from "../support/closeness.ts";
import { assertClose, DeviceBound } from "../support/cut.ts";
import oddScore from "../support/odd_score.ts";
import past from "../support/past.ts";
import { normals } from "../support/random.ts";
import { shipped } from "../support/shipped.ts";
import { GradientBound } from "../support/cut_backward.ts";
import { type RingCase, type RingUnderTest, testRing } from "./ring.ts";

/** Sizes that are multiples of nothing; three query heads share a K/V head. */
const shape = { batch: 2, tokens: 103, heads: 6, kvHeads: 2, headDim: 12 };
const rows = shape.batch * shape.tokens * shape.headDim;
const inputs = {
  q: normals(1, rows * shape.heads),
  k: normals(2, rows * shape.kvHeads),
  v: normals(3, rows * shape.kvHeads),
};
const cotangent = normals(4, rows * shape.heads);
const scale = 1 / Math.sqrt(shape.headDim);

const rings = [1, 2, 3, 5, 8];

/** Every promise of the contract. */
export const variantCases: ReadonlyArray<RingCase> = shipped(shape).map((
  { name, attention, rules },
) => ({
  name,
  run: Effect.gen(function* () {
    const judged = { ...shape, scale, rules };
    const { q, k, v } = inputs;
    const expected = denseAttention(judged, q, k, v);
    const slopes = denseGradients(judged, q, k, v, cotangent);
    const plain = denseAttention({ ...judged, rules: { sees: () => true } }, q, k, v);
    const bound = yield* DeviceBound, gradientBound = yield* GradientBound;
    for (const ring of rings) {
      const all: ReadonlyArray<Layout> = ring === 3 ? [...layouts, "solved"] : layouts;
      for (const [i, layout] of all.entries()) {
        const where = `ring of ${ring}, ${layout}`;
        // Gradients take turns with the layouts.
        const gradients = (rings.indexOf(ring) + i) % layouts.length === 0;
        const result = yield* attend({
          ...shape,
          ...inputs,
          attention,
          ring,
          layout,
          ...(gradients ? { cotangent } : {}),
        }).pipe(Effect.provide(Crew.local()));
        assertClose(result, expected, bound);
        if (name !== "bidirectional") {
          assert.throws(() => assertClose(plain, expected, bound), "full attention would pass");
        }
        for (const tensor of gradients ? ["dq", "dk", "dv"] as const : []) {
          const apart = relativeL2(result.gradients![tensor], slopes[tensor]);
          assert.ok(apart <= gradientBound, `${where}: ${tensor} is ${apart} away`);
        }
      }
    }
  }),
}));

/** A table of blocks of which two rows are empty, so that their queries see nothing, and one column. */
const size = 9, n = Math.ceil(shape.tokens / size);
const table = Array.from({ length: n * n }, (_, i) => {
  const [q, k] = [Math.floor(i / n), i % n];
  return Number(q !== 2 && q !== n - 1 && k !== 4 && (q + k) % 3 !== 1);
});

const emptyRows = (what: string, variant: Variant, sees: PairMask): RingCase => ({
  name: `rows that see no key have o = 0, lse = −∞ and no gradients: ${what}`,
  run: Effect.gen(function* () {
    const judged = { ...shape, scale, rules: { sees } };
    const { q, k, v } = inputs;
    const expected = denseAttention(judged, q, k, v);
    const slopes = denseGradients(judged, q, k, v, cotangent);
    const blind = (i: number) => expected.lse[i] === -Infinity;
    const seen = (lse: ArrayLike<number>) => Array.from(lse).filter((_, i) => !blind(i));
    assert.ok(seen(expected.lse).length < expected.lse.length);
    for (const ring of [1, 3, 8]) {
      const result = yield* attend({
        ...{ ...shape, ...inputs, cotangent, ring, layout: "zigzag" },
        attention: [variant],
      }).pipe(Effect.provide(Crew.local()));
      result.lse.forEach((lse, i) => assert.equal(lse === -Infinity, blind(i)));
      assertClose(
        { o: result.o, lse: seen(result.lse) },
        { o: expected.o, lse: seen(expected.lse) },
        yield* DeviceBound,
      );
      const { heads, tokens, headDim } = shape;
      expected.lse.forEach((_, i) => {
        if (!blind(i)) return;
        const [b, h, token] = [
          Math.floor(i / (heads * tokens)),
          Math.floor(i / tokens) % heads,
          i % tokens,
        ];
        const from = ((b * tokens + token) * heads + h) * headDim;
        for (const tensor of [result.o, result.gradients!.dq]) {
          assert.ok(tensor.subarray(from, from + headDim).every((x) => x === 0));
        }
      });
      for (const tensor of ["dq", "dk", "dv"] as const) {
        const apart = relativeL2(result.gradients![tensor], slopes[tensor]);
        assert.ok(apart <= (yield* GradientBound), `ring of ${ring}: ${tensor} is ${apart} away`);
      }
    }
  }),
});

const cases: ReadonlyArray<RingCase> = [
  ...variantCases,
  emptyRows(
    "a table of blocks",
    blocks({ size, table }),
    (_b, _h, q, k) => table[Math.floor(q / size) * n + Math.floor(k / size)] === 1,
  ),
  emptyRows(
    "a band beside its queries",
    past({ gap: 30, reach: 41 }),
    (_b, _h, q, k) => q - k >= 30 && q - k <= 41,
  ),
];

const noNumber: RingCase = {
  name: "a score that is no number ends the run, with the pair",
  run: Effect.gen(function* () {
    for (const ring of [1, 3]) {
      const error = yield* attend({
        ...{ ...shape, ...inputs, ring, layout: "zigzag" },
        attention: [oddScore({ token: 71 })],
      }).pipe(Effect.provide(Crew.local()), Effect.flip);
      assert.match(error.message, /attention "odd-score"/);
      assert.match(error.message, /NaN, of|NaN of/);
      assert.match(error.message, /batch entry [01], head 1, query 71, key 5/);
    }
  }),
};

/** Registers the contract, or some of its cases, as one test of a device and its links. */
export const testVariants = (
  name: string,
  ring: RingUnderTest,
  some: (name: string) => boolean = () => true,
): void =>
  testRing(name, {
    ...ring,
    contract: {
      name: "the contract of variants",
      cases: [...cases, noNumber].filter(({ name }) => some(name)),
    },
  });
